"""How good the served predictions were: calibration and AUC by hour once labels are in, drift, and degraded answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.profile import FeatureProfile
from components.monitor.logs import features_of
from components.training import metrics

Content = dict[str, Any]
Clicked = Mapping[tuple[str, str], bool]


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
        "expected": float(scores.sum()),
        "degraded": pc.mean(requests["worse_max"]).as_py(),
        **{name: measure(labels, scores) if len(labels) else None for name, measure in figures.items()},
    }


def psi(
    logged: pa.Table, profiles: Mapping[str, FeatureProfile], recent: timedelta, now: datetime | None = None
) -> dict[str, float | None]:
    """Population stability index of each feature: the rows of the last `recent` against the model's training set.

    None where no such row was logged; features of which training kept no profile are left out.
    """
    since = pa.scalar((now or datetime.now(UTC)) - recent, logged["at"].type)
    served = features_of(logged.filter(pc.greater_equal(logged["at"], since)))
    return {name: profiles[name].psi(column) for name, column in served.items() if name in profiles}
