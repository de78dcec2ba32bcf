"""The lift ledger: every number again from the metrics, and the rows on which there is none."""

import json

import numpy as np
import pytest

from components.evaluate.lift import compare, cost, lift
from components.evaluate.settings import EvaluateSettings
from components.evaluate.slices import slices
from components.run import StepRecord
from components.training import metrics, paired
from tests.components.evaluate.logs import linear, training_set, weights_of

SETTINGS = EvaluateSettings(resamples=100)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Test rows, a model, the same without what it knows of items, and the slices."""
    data = training_set(tmp_path_factory.mktemp("lift") / "set")
    rows, weights = data.arrays("test"), weights_of(data)
    poor = weights.copy()
    for slots in data.layout.fields:
        poor[slots.offset : slots.offset + slots.size] *= slots.side != "item"
    scores = linear(weights)(rows.ids), linear(poor)(rows.ids)
    return rows, *scores, slices(data, "test", rows, values=5)


def test_overall_and_every_slice(case):
    rows, model, base, masks = case
    found = lift(rows, model, base, masks, SETTINGS)
    assert set(found["slices"]) == set(masks)
    for mask, one in [(np.ones(len(model), bool), found["overall"]), (masks["warm"], found["slices"]["warm"])]:
        labels, users = rows.labels[mask], rows.user_codes[mask]
        auc, auc_base = metrics.auc(labels, model[mask]), metrics.auc(labels, base[mask])
        assert (one["auc"], one["auc_base"], one["rows"]) == (auc, auc_base, mask.sum())
        assert one["auc_difference"] == auc - auc_base > 0
        assert one["rela_impr"] == (auc - 0.5) / (auc_base - 0.5) - 1
        gaucs = metrics.gauc(labels, model[mask], users), metrics.gauc(labels, base[mask], users)
        assert one["gauc_difference"] == gaucs[0] - gaucs[1]
        exact = paired.delong(labels, model[mask], base[mask])
        assert (one["delong"]["low"], one["delong"]["p"]) == (exact.low, exact.p)
        losses = metrics.logloss(labels, model[mask]), metrics.logloss(labels, base[mask])
        assert one["logloss"]["difference"] == pytest.approx(losses[0] - losses[1])
        drawn = paired.bootstrap(labels, model[mask], base[mask], resamples=100)
        assert (one["bootstrap"]["low"], one["bootstrap"]["high"]) == (drawn.low, drawn.high)
    assert found["slices"]["long_tail"]["bootstrap"] is None
    by_user = paired.bootstrap(rows.labels, model, base, resamples=100, clusters=rows.user_codes)
    assert found["overall"]["bootstrap_users"]["low"] == by_user.low != found["overall"]["bootstrap"]["low"]
    json.dumps(found, allow_nan=False)


def test_without_resamples_only_delong(case):
    found = lift(*case, EvaluateSettings(resamples=0))
    assert found["overall"]["bootstrap"] is None and found["overall"]["bootstrap_users"] is None
    assert found["overall"]["delong"] is not None


def test_a_wider_confidence_is_a_wider_interval(case):
    rows, model, base, _ = case
    every = np.ones(len(model), dtype=bool)
    settings = [EvaluateSettings(resamples=200, confidence=confidence) for confidence in (0.8, 0.99)]
    narrow, wide = (compare(rows, model, base, every, one, resampled=True) for one in settings)
    for name in ("delong", "bootstrap", "logloss"):
        assert wide[name]["low"] < narrow[name]["low"] < narrow[name]["high"] < wide[name]["high"]


@pytest.mark.parametrize("wanted", [None, 0.0, 1.0])
def test_empty_and_one_class_slices_are_null(case, wanted):
    rows, model, base, _ = case
    mask = rows.labels == wanted
    found = compare(rows, model, base, mask, SETTINGS, resampled=True)
    assert found["rows"] == mask.sum()
    for name in ("auc", "auc_base", "auc_difference", "rela_impr", "gauc_difference", "delong", "bootstrap"):
        assert found[name] is None
    assert (found["logloss"] is None) == (wanted is None)
    json.dumps(found, allow_nan=False)


def test_cost_sums_the_steps_of_a_run():
    assert cost([]) is None
    took = [("encode", 2.5, 2), ("encode", 1.5, 2), ("align", 10.0, 1), ("finetune", 3.0, 0), ("finetune", 4.0, 0)]
    found = cost([StepRecord(name, began, seconds, gpus) for began, (name, seconds, gpus) in enumerate(took)])
    assert found["steps"] == {"encode": 4.0, "align": 10.0, "finetune": 7.0}
    assert found["gpu_steps"] == {"encode": 8.0, "align": 10.0, "finetune": 0.0}
    assert (found["alignment_seconds"], found["alignment_gpu_seconds"]) == (14.0, 18.0)


def test_a_run_without_alignment_did_not_pay_for_it():
    found = cost([StepRecord("finetune", 0.0, 3.0, 1)])
    assert (found["alignment_seconds"], found["alignment_gpu_seconds"]) == (None, None)
