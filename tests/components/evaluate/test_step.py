"""The whole step on real checkpoints and a real bundle: its files, its refusals, and that it repeats itself."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.dataset.errors import UserError
from components.evaluate import step as room
from components.evaluate.scoring import ScoreError
from components.evaluate.settings import EvaluateSettings
from components.evaluate.step import bayes_auc, evaluate
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.training import metrics
from components.training.checkpoints import save_model
from components.training.seeds import seed_everything
from tests.components.evaluate.logs import spec_of, table, training_set, weights_of, write_bundle

SETTINGS = EvaluateSettings(resamples=50, degradation_rows=200, threads=1)
CONFIG = BackboneConfig(embedding_dim=4, hidden=(8,), layers=1)
FILES = {"metrics.json", "curves.json", "lift.json", "degradation.json"}


def checkpoint(folder, data, seed, weight=None):
    seed_everything(seed)
    model = build_backbone("dcn", data.layout, CONFIG)
    if weight is not None:
        with torch.no_grad():
            model.head.weight.fill_(weight)
    save_model(folder, model, {})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("step") / "set")


@pytest.fixture(scope="module")
def arms(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    return {arm: checkpoint(folder / arm, data, seed) for seed, arm in enumerate(("collaborative", "ctrl"))}


@pytest.fixture(scope="module")
def evaluated(data, arms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    bundle = write_bundle(folder / "champion", data, weights_of(data))
    return folder / "out", evaluate(data.path, arms, "ctrl", folder / "out", SETTINGS, bundle)


def test_files_and_shapes(evaluated, data):
    output, results = evaluated
    scores = {"scores_collaborative.parquet", "scores_ctrl.parquet", "scores_champion.parquet"}
    assert {path.name for path in output.iterdir()} == FILES | scores
    content = json.loads((output / "metrics.json").read_text())
    assert content == {name: value for name, value in results.items() if name != "curves"}
    assert set(content) == {"dataset", "rows", "candidate", "arms", "lift", "champion", "bayes_auc"}
    assert set(content["arms"]) == {"collaborative", "ctrl"}
    assert content["rows"] == len(data.table("test"))
    assert content["bayes_auc"] is None
    for arm in content["arms"].values():
        assert {"rows", "label_rate", "auc", "logloss", "gauc", "calibration", "normalised_entropy", "pr_auc"} < set(
            arm
        )
        for one in arm["slices"].values():
            assert set(one) == {"rows", "label_rate", "auc", "logloss", "gauc", "calibration"}
    curves = json.loads((output / "curves.json").read_text())
    assert set(curves["arms"]) == {"collaborative", "ctrl"}
    assert set(curves["champion"]) == {"roc", "pr", "reliability"}


def test_metrics_are_those_of_the_written_scores(evaluated, data):
    output, results = evaluated
    users = data.arrays("test").user_codes
    for arm, said in [*results["arms"].items(), ("champion", results["champion"])]:
        written = pq.read_table(output / f"scores_{arm}.parquet")
        assert written.schema.names == ["impression_id", "label", "probability"]
        assert written["impression_id"].equals(data.table("test")["impression_id"])
        labels, scores = written["label"].to_numpy(), written["probability"].to_numpy()
        assert said["auc"] == metrics.auc(labels, scores)
        assert said["gauc"] == metrics.gauc(labels, scores, users)
        assert said["logloss"] == pytest.approx(metrics.logloss(labels, scores), abs=1e-12)


def test_the_ledger_and_the_champion_compare_the_same_rows(evaluated):
    output, results = evaluated
    ledger = json.loads((output / "lift.json").read_text())
    assert set(ledger) == {"over", "candidate", "arms", "cost"}
    assert ledger["arms"]["ctrl"] == results["lift"]
    assert results["lift"]["over"] == "collaborative"
    arms, champion = results["arms"], results["champion"]
    difference = arms["ctrl"]["auc"] - arms["collaborative"]["auc"]
    assert results["lift"]["overall"]["auc_difference"] == pytest.approx(difference)
    assert champion["compatible"] is True
    assert champion["auc"] > 0.65
    assert champion["lift"]["overall"]["auc_difference"] == pytest.approx(arms["ctrl"]["auc"] - champion["auc"])


def test_the_same_again(evaluated, data, arms, tmp_path):
    output, _ = evaluated
    evaluate(data.path, arms, "ctrl", tmp_path / "out", SETTINGS, output.parent / "champion")
    for name in ("metrics.json", "curves.json", "degradation.json"):
        assert (tmp_path / "out" / name).read_bytes() == (output / name).read_bytes()


def test_an_incompatible_champion_is_said(data, arms, tmp_path):
    rows = table().append_column("studio", pa.array(["x"] * 3000))
    fields = [*spec_of().model_dump(mode="json")["fields"], {"name": "studio", "side": "item", "kind": "category"}]
    wider = training_set(tmp_path / "wider", spec_of(fields=fields), rows)
    bundle = write_bundle(tmp_path / "champion", wider, weights_of(wider))
    results = evaluate(data.path, arms, "ctrl", tmp_path / "out", SETTINGS, bundle)
    assert results["champion"]["compatible"] is False
    assert "studio" in results["champion"]["reason"]
    assert results["champion"]["lift"] is None
    assert results["lift"] is not None
    assert not (tmp_path / "out" / "scores_champion.parquet").exists()


def test_the_collaborative_arm_alone_has_no_lift(data, arms, tmp_path):
    only = {"collaborative": arms["collaborative"]}
    settings = SETTINGS.model_copy(update={"degradation": False})
    results = evaluate(data.path, only, "collaborative", tmp_path / "out", settings)
    assert results["lift"] is None and results["champion"] is None
    assert not (tmp_path / "out" / "degradation.json").exists()
    assert json.loads((tmp_path / "out" / "lift.json").read_text())["arms"] == {}


def test_one_class_rows_are_null_everywhere(arms, data, tmp_path):
    rows = table()
    label = np.array(rows["label"].to_pylist(), dtype=np.int8)
    label[2700:] = 0
    rows = rows.set_column(rows.column_names.index("label"), "label", pa.array(label))
    quiet = training_set(tmp_path / "quiet", rows=rows)
    bundle = write_bundle(tmp_path / "champion", quiet, weights_of(quiet))
    results = evaluate(quiet.path, arms, "ctrl", tmp_path / "out", SETTINGS, bundle)
    assert results["arms"]["ctrl"]["auc"] is None
    assert results["arms"]["ctrl"]["calibration"] is None
    assert results["curves"]["arms"]["ctrl"]["roc"] is None
    assert math.isfinite(results["arms"]["ctrl"]["logloss"])


def test_nan_scores_stop_the_step_and_write_nothing(data, arms, tmp_path):
    broken = arms | {"ctrl": checkpoint(tmp_path / "broken", data, 3, weight=math.nan)}
    with pytest.raises(ScoreError, match="arm 'ctrl': 300 of 300 scores are NaN"):
        evaluate(data.path, broken, "ctrl", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_candidate_that_is_no_arm_is_refused(data, arms, tmp_path):
    with pytest.raises(UserError, match="candidate 'flip' is no arm; write one of collaborative, ctrl"):
        evaluate(data.path, arms, "flip", tmp_path / "out", SETTINGS)


def test_an_arm_of_another_training_set_is_refused(data, arms, tmp_path):
    other = training_set(tmp_path / "set", rows=table(seed=5, rows=500))
    with pytest.raises(UserError, match=r"arm 'collaborative': .* was trained on another training set"):
        evaluate(other.path, arms, "ctrl", tmp_path / "out", SETTINGS)


def truth_of(folder, data, drop=0):
    """A truth file in any order; labels of the rows are 1 where its probability is above a half, by and large."""
    random = np.random.default_rng(1)
    ids = random.permutation(len(table()))[drop:]
    probability = random.random(len(ids))
    (folder / "sample").mkdir()
    pq.write_table(pa.table({"impression_id": ids, "probability": probability}), folder / "sample" / "truth.parquet")
    return dict(zip(ids.tolist(), probability.tolist(), strict=True))


def test_bayes_auc_of_the_sample_is_that_of_its_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    data = training_set(tmp_path / "set", spec_of(name=room.SAMPLE))
    rows, impressions = data.arrays("test"), data.table("test")["impression_id"]
    assert bayes_auc(data, rows, impressions) is None
    truth = truth_of(tmp_path, data)
    expected = metrics.auc(rows.labels, [truth[one] for one in impressions.to_pylist()])
    assert bayes_auc(data, rows, impressions) == pytest.approx(expected, abs=1e-12)
    films = training_set(tmp_path / "films")
    assert bayes_auc(films, rows, impressions) is None


def test_a_truth_that_lacks_rows_is_no_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    data = training_set(tmp_path / "set", spec_of(name=room.SAMPLE))
    truth_of(tmp_path, data, drop=1000)
    assert bayes_auc(data, data.arrays("test"), data.table("test")["impression_id"]) is None
