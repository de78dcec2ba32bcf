"""How good the served predictions were: calibration and AUC by hour once labels are in, drift, and degraded answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.monitor.logs import features_of
from components.training import metrics

Content = dict[str, Any]
Clicked = Mapping[tuple[str, str], bool]
#: Values of a feature that are told apart; the others are one.
VALUES = 20
#: Share of a bin that has none, so that its logarithm exists.
EMPTY = 1e-4


def by_hour(logged: pa.Table, clicked: Clicked, delay: timedelta, now: datetime | None = None) -> list[Content]:
    """Rows, share of degraded requests and, from `delay` on, AUC and calibration of each hour, the oldest first.

    An item without a click is a negative once its request is older than `delay`; before that nobody knows.
    """
    hours, now = pc.floor_temporal(logged["at"], unit="hour"), now or datetime.now(UTC)
    each = pc.unique(hours)
    each = each.take(pc.array_sort_indices(each))
    return [_hour(logged.filter(pc.equal(hours, hour)), clicked, hour.as_py(), now - delay) for hour in each]


def _hour(rows: pa.Table, clicked: Clicked, hour: datetime, before: datetime) -> Content:
    judged = rows.filter(pc.less_equal(rows["at"], pa.scalar(before, rows["at"].type)))
    keys = zip(judged["request_id"].to_pylist(), judged["item_id"].to_pylist(), strict=True)
    labels = np.array([clicked.get(key, False) for key in keys], np.float32)
    scores = judged["probability"].to_numpy().astype(np.float64)
    worse = pc.greater(pc.list_value_length(rows["degraded"]), 0).cast(pa.int8())
    requests = pa.table({"id": rows["request_id"], "worse": worse}).group_by("id").aggregate([("worse", "max")])
    figures = {"auc": metrics.auc, "logloss": metrics.logloss, "calibration": metrics.calibration}
    return {
        "hour": hour.isoformat(),
        "requests": requests.num_rows,
        "rows": rows.num_rows,
        "judged": judged.num_rows,
        "clicks": int(labels.sum()),
        "degraded": pc.mean(requests["worse_max"]).as_py(),
        **{name: measure(labels, scores) if len(labels) else None for name, measure in figures.items()},
    }


def psi(logged: pa.Table, recent: timedelta, now: datetime | None = None) -> dict[str, float | None]:
    """Population stability index of each feature: the rows of the last `recent` against all earlier ones.

    The sum over bins of (p - q) ln(p / q); numbers in tenths of the earlier rows, of others the most frequent values.
    By custom below 0.1 nothing has changed, above 0.25 much has. None where one of the two has no rows.
    """
    since = pa.scalar((now or datetime.now(UTC)) - recent, logged["at"].type)
    late = pc.greater_equal(logged["at"], since)
    earlier, later = features_of(logged.filter(pc.invert(late))), features_of(logged.filter(late))
    return {name: _psi(earlier[name].to_pylist(), later[name].to_pylist()) for name in earlier}


def _psi(earlier: Sequence[Any], later: Sequence[Any]) -> float | None:
    if not earlier or not later:
        return None
    numbers = [value for value in earlier if isinstance(value, int | float)]
    edges = np.unique(np.quantile(numbers, np.arange(1, 10) / 10)) if numbers else None
    before, after = (Counter(_bin(value, edges) for row in rows for value in _values(row)) for rows in (earlier, later))
    kept = {name for name, _ in before.most_common(VALUES)}
    p, q = _shares(before, kept), _shares(after, kept)
    return math.fsum((q[name] - p[name]) * math.log(q[name] / p[name]) for name in p)


def _values(row: Any) -> list[Any]:
    """The values of a row; a list counts as each of its values, an empty one as a missing value."""
    return (row or [None]) if isinstance(row, list) else [row]


def _bin(value: Any, edges: Any) -> Any:
    if edges is None or value is None:
        return value
    return int(np.searchsorted(edges, value, side="right"))


def _shares(counts: Mapping[Any, int], kept: set[Any]) -> dict[Any, float]:
    total = sum(counts.values())
    found = {name: counts.get(name, 0) / total for name in kept}
    rest = 1 - math.fsum(found.values())
    return {name: max(share, EMPTY) for name, share in [*found.items(), (("rest",), rest)]}
