"""Expectations that follow from the profile of the run before: what has moved since is a warning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
from great_expectations.expectations.expectation import Expectation

from components.dataset.spec import EVENT_TIMESTAMP, LABEL, DatasetSpec, FieldSpec, Kind
from components.validate.expect import expect
from components.validate.settings import ValidateSettings

SIDES = {"user": "users", "item": "items", "context": "impressions"}
#: The frame of what has moved: for each field a column of differences of shares, a line for each value.
SHARES = "shares"


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


def moved(spec: DatasetSpec, now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, list[float]]:
    """For each field of kind category or multi: by how much the share of each value has changed since the run before.

    Shares are of the rows that hold a value. The values are those that were, or are, among the most frequent; the
    last difference is that of all other values together, so that what comes in from outside is seen too.

    Args:
        spec: The data set.
        now: The profile of this run, by field.
        before: The profile of the run before.
    """
    fields = [field.name for field in spec.fields if field.kind in {Kind.CATEGORY, Kind.MULTI}]
    return {name: _moved(now[name], before[name]) for name in fields if name in now and name in before}


def _moved(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[float]:
    values = dict.fromkeys((*before["top"], *now["top"]))
    differences = []
    for value in values:
        (low, high), (low_before, high_before) = _bounds(now, value), _bounds(before, value)
        differences.append(max(0.0, low - high_before) - max(0.0, low_before - high))
    others, others_before = (found["mean_values"] - sum(found["top"].values()) for found in (now, before))
    return [*differences, others - others_before]


def _bounds(found: Mapping[str, Any], value: str) -> tuple[float, float]:
    """Between which shares that of a value lies: one that is not among the most frequent has no more than they."""
    share = found["top"].get(value)
    if share is not None:
        return share, share
    return 0.0, min(found["top"].values()) if found["distinct"] > len(found["top"]) > 0 else 0.0


def shares_of(differences: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """The frame SHARES: a column for each field, filled up with zeros."""
    longest = max((len(column) for column in differences.values()), default=0)
    return pd.DataFrame({name: [*column, *[0.0] * (longest - len(column))] for name, column in differences.items()})


def drift_of_shares(names: Iterable[str], settings: ValidateSettings) -> Iterator[Expectation]:
    """The expectations of the frame SHARES."""
    share = settings.max_share_drift
    for name in names:
        words = f"the share of each value of {name} is within {share:g} of the previous run's"
        yield expect("ExpectColumnValuesToBeBetween", "warning", words, column=name, min_value=-share, max_value=share)
