"""Calibration, AUC, drift and degraded answers of logs whose truth is known."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.dataset.errors import UserError
from components.dataset.profile import FeatureProfile
from components.monitor.logs import features_of, feedback, predictions
from components.monitor.quality import by_hour, psi
from components.monitor.skew import same
from components.training import metrics

NOW = datetime(2030, 1, 1, 12, 30, tzinfo=UTC)
DELAY = timedelta(hours=1)


def logged(rows=400, seed=3):
    """Requests of four items over four hours; and which of them were clicked, as likely as was said."""
    draw = np.random.default_rng(seed)
    at = [NOW - timedelta(minutes=240 * (rows - row // 4 * 4) / rows) for row in range(rows)]
    scores = draw.random(rows).astype(np.float32)
    keys = [(f"{row // 4:032x}", f"i{row % 4}") for row in range(rows)]
    table = pa.table(
        {
            "request_id": [key[0] for key in keys],
            "item_id": [key[1] for key in keys],
            "at": pa.array(at, pa.timestamp("us", "UTC")),
            "probability": scores,
            "degraded": pa.array(
                [["user_profile:stale"] if row // 4 % 5 == 0 else [] for row in range(rows)], pa.list_(pa.string())
            ),
            "feature.price": draw.normal(size=rows),
            "feature.colour": draw.choice(["red", "blue"], rows),
            "feature.tags": [["a", "b"] if row % 2 else [] for row in range(rows)],
        }
    )
    clicked = {key: True for key, score in zip(keys, scores, strict=True) if draw.random() < score}
    return table, clicked


def test_hours_are_judged_as_the_metrics_say():
    table, clicked = logged()
    hours = by_hour(table, clicked, DELAY, NOW)
    assert [line["hour"][11:13] for line in hours] == ["08", "09", "10", "11", "12"]
    assert sum(line["rows"] for line in hours) == 400
    assert sum(line["requests"] for line in hours) == 100
    whole = hours[1]
    rows = [row for row in table.to_pylist() if row["at"].hour == 9]
    labels = np.array([clicked.get((row["request_id"], row["item_id"]), False) for row in rows], np.float32)
    scores = np.array([row["probability"] for row in rows])
    assert whole["auc"] == pytest.approx(metrics.auc(labels, scores))
    assert whole["calibration"] == pytest.approx(scores.sum() / labels.sum(), rel=1e-6)
    assert whole["clicks"] == labels.sum()
    assert whole["degraded"] == pytest.approx(np.mean([bool(row["degraded"]) for row in rows]))


def test_what_may_still_be_clicked_is_not_judged():
    table, clicked = logged()
    hours = by_hour(table, clicked, DELAY, NOW)
    assert (hours[-1]["judged"], hours[-1]["auc"], hours[-1]["calibration"]) == (0, None, None)
    assert 0 < hours[-2]["judged"] < hours[-2]["rows"]


def trained(table):
    """The profiles that a model would have brought along, had it been trained on these rows."""
    found = {name: FeatureProfile.of(column) for name, column in features_of(table).items()}
    return {name: FeatureProfile.from_json(json.loads(json.dumps(one.to_json()))) for name, one in found.items()}


def test_drift_is_seen_where_it_is_and_only_there():
    profiles = trained(logged(4000, seed=9)[0])
    table, _ = logged(4000)
    calm = psi(table, profiles, timedelta(hours=2), NOW)
    assert set(calm) == {"price", "colour", "tags"}
    assert all(0 <= value < 0.1 for value in calm.values())
    late = np.array([at >= NOW - timedelta(hours=2) for at in table["at"].to_pylist()])
    moved = table["feature.price"].to_numpy() + late
    painted = np.where(late, "green", table["feature.colour"].to_numpy(zero_copy_only=False))
    for name, values in (("feature.price", moved), ("feature.colour", painted)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    found = psi(table, profiles, timedelta(hours=2), NOW)
    assert found["price"] > 0.25
    assert found["colour"] > 1
    assert found["tags"] == calm["tags"]


def test_drift_by_hand():
    trained_on = pa.table({"feature.colour": ["r", "r", "r", "b"]})
    table = pa.table(
        {
            "at": pa.array([NOW - timedelta(hours=3)] * 4 + [NOW] * 4, pa.timestamp("us", "UTC")),
            "feature.colour": ["x", "x", "x", "x", "r", "b", "b", "b"],
            "feature.new": ["y"] * 8,
        }
    )
    expected = (0.25 - 0.75) * math.log(0.25 / 0.75) + (0.75 - 0.25) * math.log(0.75 / 0.25)
    assert psi(table, trained(trained_on), timedelta(hours=1), NOW) == {"colour": pytest.approx(expected)}
    assert psi(table, trained(trained_on), timedelta(seconds=-1), NOW) == {"colour": None}


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (pa.array([["a", "b"], [], None, ["a"]]), pa.array([["b", "a"], None, ["a"], []]), False),
        (pa.array([["a", "b"], [], None, ["a"]]), pa.array([["b", "a"], ["a"]]), True),
        (pa.array([1.0, 2.0, None, 3.0]), pa.array([2.0, 3.0, 1.0, None]), False),
        (pa.array([1.0, 2.0, None, 3.0]), pa.array([2.0, 3.0, 1.0]), True),
        (pa.array([None, None], pa.float64()), pa.array([None], pa.float64()), False),
        (pa.array([None, None], pa.float64()), pa.array([1.5]), True),
        (pa.array([None, None]), pa.array([None, None, None]), False),
        (pa.array([str(n) for n in range(40)]), pa.array([str(n) for n in range(40, 80)]), True),
        (pa.array([True, False]), pa.array([False, True]), False),
    ],
)
def test_missing_values_lists_and_rare_values_have_their_share(before, after, moved):
    found = FeatureProfile.of(before)
    assert math.fsum(found.shares) == pytest.approx(1)
    distance = FeatureProfile.from_json(json.loads(json.dumps(found.to_json()))).psi(after)
    assert (distance > 0.25) if moved else (distance == pytest.approx(0, abs=1e-12))
    assert found.psi(after[:0]) is None


def test_a_click_is_not_taken_back(tmp_path):
    (tmp_path / "feedback").mkdir()
    events = [("a", True), ("a", False), ("b", False)]
    lines = [json.dumps({"request_id": "1", "item_id": item, "clicked": clicked}) for item, clicked in events]
    (tmp_path / "feedback" / "1.jsonl").write_text("\n".join(lines) + '\n{"request_id": "2", "ite')
    assert feedback(tmp_path) == {("1", "a"): True, ("1", "b"): False}
    with pytest.raises(UserError, match="no predictions are logged"):
        predictions(tmp_path)


def test_earlier_requests_stay_in_their_files(tmp_path):
    table, _ = logged()
    (tmp_path / "predictions").mkdir()
    pq.write_table(table.slice(0, 150), tmp_path / "predictions" / "1.parquet")
    pq.write_table(table.slice(150), tmp_path / "predictions" / "2.parquet")
    since = NOW - timedelta(hours=2)
    found = predictions(tmp_path, since)
    assert found["request_id"].to_pylist() == [row["request_id"] for row in table.to_pylist() if row["at"] >= since]
    assert predictions(tmp_path).num_rows == 400
    with pytest.raises(UserError, match="no predictions are logged"):
        predictions(tmp_path, NOW + DELAY)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (0.1 + 0.2, 0.3, False),
        (-0.0, 0.0, False),
        (math.nan, math.nan, True),
        ([], None, True),
        (["a", "b"], ["b", "a"], False),
        ([1.5], [1.5], True),
        ("", None, False),
        (None, 0.0, False),
    ],
)
def test_values_are_compared_to_the_last_bit(one, other, equal):
    assert same(one, other) is equal
