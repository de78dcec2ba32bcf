"""Expectations that follow from the profile of the run before: what has moved since is a warning."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from great_expectations.expectations.expectation import Expectation

from components.dataset.spec import EVENT_TIMESTAMP, LABEL, DatasetSpec, FieldSpec, Kind
from components.run import home, read_json, write_json
from components.validate.expect import expect
from components.validate.profile import TOP
from components.validate.settings import ValidateSettings

SIDES = {"user": "users", "item": "items", "context": "impressions"}
#: Weight kept for values that the run before did not see; without it one of them would be infinitely surprising.
UNSEEN = 0.01


def previous_summary(spec: DatasetSpec) -> dict[str, Any] | None:
    """The summary of the last validated run of this very spec; None if there was none."""
    path = _path(spec)
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return found if found and found["spec_digest"] == spec.digest else None


def keep_summary(spec: DatasetSpec, summary: dict[str, Any]) -> None:
    """Make this run's summary the one that the next run is compared with."""
    write_json(_path(spec), summary)


def _path(spec: DatasetSpec) -> Path:
    return home() / "profiles" / f"{spec.identifier}.json"


def drift(spec: DatasetSpec, settings: ValidateSettings, table: str, before: dict[str, Any]) -> Iterator[Expectation]:
    """The expectations of one table: number of rows, share of positives, time range, and each field's values."""
    yield from _rows(settings, _length(spec, table, before))
    if table == "impressions":
        yield from _label(settings, before)
        yield from _range(spec, before)
    for field in spec.fields:
        known = before["profile"].get(field.name)
        if SIDES[field.side] == table and known and known["rows"]:
            yield from _field(field, settings, known)


def _length(spec: DatasetSpec, table: str, before: dict[str, Any]) -> int:
    """How many rows the table had; 0 if that is not known."""
    if table == "impressions":
        return int(before["rows"])
    names = [field.name for field in spec.fields if SIDES[field.side] == table]
    return max((int(before["profile"][name]["rows"]) for name in names if name in before["profile"]), default=0)


def _rows(settings: ValidateSettings, rows: int) -> Iterator[Expectation]:
    # Of a longer table only a part is looked at, whose length says nothing.
    if 0 < rows <= settings.max_rows / 2:
        share = settings.max_row_drift
        words = f"there are {1 - share:.0%} to {1 + share:.0%} of the {rows} rows of the previous run"
        low, high = int(rows * (1 - share)), int(rows * (1 + share)) + 1
        yield expect("ExpectTableRowCountToBeBetween", "warning", words, min_value=low, max_value=high)


def _label(settings: ValidateSettings, before: dict[str, Any]) -> Iterator[Expectation]:
    rate, share = before["label_rate"], settings.max_share_drift
    words = f"the share of positives is within {share:g} of the previous run's {rate:.3f}"
    low, high = max(0.0, rate - share), min(1.0, rate + share)
    yield expect("ExpectColumnMeanToBeBetween", "warning", words, column=LABEL, min_value=low, max_value=high)


def _range(spec: DatasetSpec, before: dict[str, Any]) -> Iterator[Expectation]:
    if spec.keys.timestamp is None or not before.get("last_timestamp"):
        return
    last = datetime.fromisoformat(before["last_timestamp"])
    words = f"the log reaches as far as the previous run's, {last:%Y-%m-%d %H:%M}"
    yield expect("ExpectColumnMaxToBeBetween", "warning", words, column=EVENT_TIMESTAMP, min_value=last)


def _field(field: FieldSpec, settings: ValidateSettings, known: dict[str, Any]) -> Iterator[Expectation]:
    name = field.name
    most = min(1.0, known["null_share"] + settings.max_share_drift)
    words = f"at most {most:.1%} of {name} are empty, against {known['null_share']:.1%} in the previous run"
    yield expect("ExpectColumnValuesToNotBeNull", "warning", words, column=name, mostly=1 - most)
    if field.kind is Kind.NUMBER and known.get("std"):
        slack = settings.max_mean_drift * known["std"]
        words = f"the mean of {name} is within {slack:.3g} of the previous run's {known['mean']:.3g}"
        low, high = known["mean"] - slack, known["mean"] + slack
        yield expect("ExpectColumnMeanToBeBetween", "warning", words, column=name, min_value=low, max_value=high)
    if field.kind is Kind.CATEGORY and known["top"] and known["distinct"] <= TOP:
        yield _shares(name, known["top"], settings)


def _shares(name: str, shares: dict[str, float], settings: ValidateSettings) -> Expectation:
    total = sum(shares.values())
    partition = {"values": list(shares), "weights": [share / total for share in shares.values()]}
    words = f"the shares of the values of {name} are those of the previous run (divergence {settings.max_divergence:g})"
    return expect(
        "ExpectColumnKLDivergenceToBeLessThan",
        "warning",
        words,
        column=name,
        partition_object=partition,
        threshold=settings.max_divergence,
        tail_weight_holdout=UNSEEN,
    )
