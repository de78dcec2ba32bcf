"""KFP's own artefacts take what the face logs, one-class rows included."""

import math

import numpy as np
import pytest
from kfp import dsl

from components.evaluate.faces import log_metrics
from components.evaluate.lift import lift
from components.evaluate.settings import EvaluateSettings
from components.evaluate.slices import slices
from components.evaluate.summary import curves, summarise
from tests.components.evaluate.logs import linear, training_set, weights_of

SETTINGS = EvaluateSettings(resamples=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("faces") / "set")


def results(data, one_class=False):
    rows = data.arrays("test")
    if one_class:
        rows.labels[:] = 0
    masks, scores = slices(data, "test", rows, 5), linear(weights_of(data))(rows.ids)
    return {
        "candidate": "ctrl",
        "arms": {"ctrl": summarise(rows, scores, masks)},
        "lift": lift(rows, scores, scores[::-1], masks, SETTINGS),
        "champion": None,
        "curves": {"arms": {"ctrl": curves(rows, scores, SETTINGS)}},
    }


def log(content):
    metrics, roc = dsl.Metrics(name="metrics"), dsl.ClassificationMetrics(name="roc")
    log_metrics(content, metrics, roc)
    return metrics.metadata, roc.metadata


def test_the_candidate_is_logged(data):
    content = results(data)
    metrics, roc = log(content)
    arm = content["arms"]["ctrl"]
    assert metrics["auc"] == arm["auc"]
    assert metrics["auc_cold"] == arm["slices"]["cold"]["auc"]
    assert metrics["lift_over_collaborative"] == content["lift"]["overall"]["auc_difference"]
    assert "lift_over_champion" not in metrics
    points = roc["confidenceMetrics"]
    assert 2 <= len(points) <= SETTINGS.curve_points
    assert all(math.isfinite(value) for point in points for value in point.values())


def test_new_rows_are_logged_beside_what_is_served(data):
    content = results(data)
    plain, _ = log(content)
    arm = content["arms"]["ctrl"]
    grown = {**arm, "auc": 0.75, "slices": {**arm["slices"], "cold": {**arm["slices"]["cold"], "auc": 0.625}}}
    arm["with_new_rows"] = {"new": {"item": 4}, **grown}
    metrics, _ = log(content)
    assert metrics == plain | {"auc_with_new_rows": 0.75, "auc_cold_with_new_rows": 0.625}


def test_one_class_logs_what_there_is(data):
    metrics, roc = log(results(data, one_class=True))
    assert set(metrics) == {"logloss"}
    assert np.isfinite(metrics["logloss"])
    assert not roc


def test_an_incompatible_champion_has_no_lift(data):
    content = results(data) | {"lift": None, "champion": {"compatible": False, "reason": "other fields", "lift": None}}
    metrics, _ = log(content)
    assert not [name for name in metrics if name.startswith("lift")]
