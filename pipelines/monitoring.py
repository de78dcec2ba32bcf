"""What `tandem monitor` and `tandem explain` do: read the service's logs, judge them, and show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from components.dataset.catalog import name_of
from components.dataset.spec import identifier_of
from components.monitor.logs import feedback, predictions
from components.monitor.model import bundle_of
from components.monitor.quality import by_hour, psi
from components.monitor.skew import skew
from components.run import home

SEED = 7


@dataclass(frozen=True)
class Span:
    """Which part of the log is judged, and how, in hours.

    Args:
        delay: After it an item without a click counts as one that was not clicked.
        recent: Features of so long ago and since are held against the training set.
        hours: Requests of so long ago and since are judged; all if None.
    """

    delay: float
    recent: float
    hours: float | None = None


@dataclass(frozen=True)
class Limits:
    """What a figure may be at most, or at least; None where it may be anything.

    Args:
        psi: The most that any feature's population stability index may be.
        degraded: The most that the share of degraded requests may be.
        mismatches: The most replayed rows of any feature that may differ from the offline join.
        auc: The least that the AUC within hours, weighted by judged rows, may be.
        calibration: The least and the most that expected over reported clicks may be.
        rows: Judged rows from which on `auc` and `calibration` hold.
        each: Clicks, and judged rows without one, from which on they hold. By chance alone expected over reported
            clicks is off by about one part in the square root of their number.
    """

    psi: float | None = None
    degraded: float | None = None
    mismatches: int | None = None
    auc: float | None = None
    calibration: tuple[float, float] | None = None
    rows: int = 1000
    each: int = 100


def judge(dataset: str, log: Path | None, span: Span, replay: int) -> dict[str, Any]:
    """The service's answers by hour, drift by feature, and skew of a sample of the rows.

    Args:
        dataset: Name of a data set, or path of its DatasetSpec; what it holds is read from the version's bundle.
        log: The service's log folder; that of `tandem serve` if None.
        span: Which part of the log; drift is measured against the version that answered last.
        replay: Rows that go through the offline join.

    Raises:
        UserError: nothing is logged there, or the registry has no such version.
    """
    folder = _folder(dataset, log)
    since = None if span.hours is None else datetime.now(UTC) - timedelta(hours=span.hours)
    logged = predictions(folder, since)
    drawn = np.random.default_rng(SEED).permutation(logged.num_rows)[:replay]
    newest = logged["model_version"][pc.index(logged["at"], pc.max(logged["at"])).as_py()].as_py()
    with bundle_of(dataset, newest) as bundle:
        spec, profiles = bundle.spec, bundle.profiles()
    return {
        "model_version": newest,
        "hours": by_hour(logged, feedback(folder), timedelta(hours=span.delay)),
        "psi": psi(logged, profiles, timedelta(hours=span.recent)),
        "skew": skew(spec, logged.take(np.sort(drawn))) if replay else None,
    }


def breaches(found: dict[str, Any], limits: Limits) -> list[str]:
    """What of `judge`'s figures lies beyond its limit, a line each. A figure that cannot be had breaks none."""
    lines = []
    if limits.psi is not None:
        moved = {name: value for name, value in found["psi"].items() if value is not None and value > limits.psi}
        lines += [f"PSI of {name} is {value:.3f}, at most {limits.psi:g}" for name, value in moved.items()]
    if limits.mismatches is not None and found["skew"]:
        counts = {name: line["mismatches"] for name, line in found["skew"]["features"].items()}
        wrong = {name: count for name, count in counts.items() if count > limits.mismatches}
        lines += [
            f"{name} differs offline in {count} rows, at most {limits.mismatches}" for name, count in wrong.items()
        ]
    hours = found["hours"]
    degraded = _mean(hours, "degraded", "requests")
    if limits.degraded is not None and degraded is not None and degraded > limits.degraded:
        lines.append(f"{degraded:.1%} of the answers are degraded, at most {limits.degraded:.1%}")
    auc, wanting = _mean(hours, "auc", "judged"), too_few(found, limits)
    if limits.auc is not None and auc is not None and "AUC" not in wanting and auc < limits.auc:
        lines.append(f"AUC within hours is {auc:.4f}, at least {limits.auc:g}")
    expected, clicks = (sum(hour[name] for hour in hours) for name in ("expected", "clicks"))
    if limits.calibration is not None and clicks and "calibration" not in wanting:
        low, high = limits.calibration
        if not low <= expected / clicks <= high:
            lines.append(f"calibration is {expected / clicks:.3f}, {low:g} to {high:g}")
    return lines


def too_few(found: dict[str, Any], limits: Limits) -> dict[str, str]:
    """The figures with a limit that rest on too few labels to be held to it, and on how many they do."""
    # Hours without a click, or with nothing else, have no AUC and so no part in its mean.
    ordered = [hour for hour in found["hours"] if hour["auc"] is not None]
    counted = {"AUC": (limits.auc, ordered), "calibration": (limits.calibration, found["hours"])}
    wanting = {}
    for name, (limit, hours) in counted.items():
        rows, clicks = (sum(hour[count] for hour in hours) for count in ("judged", "clicks"))
        if limit is not None and (rows < limits.rows or min(clicks, rows - clicks) < limits.each):
            wanting[name] = f"{rows} rows with {clicks} clicks; at least {limits.rows}, and {limits.each} of each kind"
    return wanting


def _mean(hours: Sequence[dict[str, Any]], name: str, weight: str) -> float | None:
    """The mean of a figure over the hours that have it, weighted."""
    weighed = [(hour[name], hour[weight]) for hour in hours if hour[name] is not None and hour[weight]]
    total = sum(weight for _, weight in weighed)
    return sum(value * weight for value, weight in weighed) / total if total else None


def rebuild(dataset: str, log: Path | None, request_id: str, item: str | None) -> dict[str, Any]:
    """A served score, rebuilt; see `components.monitor.explain`."""
    from components.monitor.explain import explain

    return explain(dataset, _folder(dataset, log), request_id, item)


def show(found: dict[str, Any]) -> None:
    """Print what `judge` found as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    hours = Table("hour", "requests", "rows", "judged", "clicks", "degraded", "AUC", "log loss", "calibration")
    for line in found["hours"]:
        shares = [_number(line[name]) for name in ("degraded", "auc", "logloss", "calibration")]
        hours.add_row(line["hour"], *(str(line[name]) for name in ("requests", "rows", "judged", "clicks")), *shares)
    console.print(hours)
    compared = (found["skew"] or {}).get("features", {})
    features = Table("feature", "PSI", "compared", "mismatches")
    for name, value in found["psi"].items():
        line = compared.get(name, {})
        features.add_row(name, _number(value), str(line.get("compared", "")), str(line.get("mismatches", "")))
    console.print(features)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _folder(dataset: str, log: Path | None) -> Path:
    if log is not None:
        return log
    return home() / "served" / identifier_of(name_of(dataset))
