"""An arm that makes rows of texts, scored with rows for the test part's newcomers: beside what it is served as."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.dataset.bundle import Bundle, write_manifest
from components.dataset.embeddings import write_embeddings
from components.dataset.errors import UserError
from components.dataset.layout import UNKNOWN
from components.dataset.prompts import TEXT_SCHEMA, write_prompt_set
from components.evaluate.scoring import arm_scorer, maps_rows, scores_with_new_rows
from components.evaluate.settings import EvaluateSettings
from components.evaluate.step import evaluate
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.training import metrics
from components.training.checkpoints import load_model
from components.training.growth import NewRows
from components.training.newcomers import id_field
from pipelines.settings import RunSettings
from pipelines.trials import Trial, tasks_of
from tests.components.dataset.test_embeddings import META
from tests.components.evaluate.logs import table, training_set, weights_of, write_bundle

SETTINGS = EvaluateSettings(resamples=50, degradation=False, threads=1)
CONFIG = BackboneConfig(embedding_dim=4, hidden=(8,), layers=1)
SIDES, DIM = ("user", "item"), 6


def write_texts(data, folder):
    """Prompts with a text for each user and item of the log, and a vector for each of them in one shard."""
    keys: dict[tuple[str, str], int] = {}
    index = {}
    for part in ("train", "valid", "test"):
        rows = data.table(part, [f"{side}_id" for side in SIDES]).to_pydict()
        numbers = {
            f"{side}_text": [keys.setdefault((side, key), len(keys)) for key in rows[f"{side}_id"]] for side in SIDES
        }
        index[part] = {name: np.array(ids, np.int32) for name, ids in numbers.items()}
    sides, words = zip(*keys, strict=True)
    texts = {"text_id": range(len(keys)), "side": sides, "hash": words, "text": words, "spans": [[]] * len(keys)}
    write_prompt_set(folder / "prompts", pa.table(texts, TEXT_SCHEMA), index, {}, {"prompt_hash": "p" * 64})
    vectors = np.random.default_rng(0).normal(size=(len(keys), DIM)).astype(np.float32)
    write_embeddings(folder / "embeddings", vectors, np.arange(len(keys), dtype=np.int32), META)
    return folder / "prompts", [folder / "embeddings"], vectors, index["test"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A log whose users and items keep arriving, texts of all of them, and both arms trained on it."""
    folder = tmp_path_factory.mktemp("new_rows")
    data = training_set(folder / "set")
    prompts, embeddings, vectors, index = write_texts(data, folder)
    settings = FinetuneSettings(map_rows=SIDES, hidden_items=0.3, epochs=1, batch_size=256, learning_rate=0.01)
    arms = {}
    for arm, texts in (("collaborative", ()), ("ctrl", (prompts, embeddings))):
        arms[arm] = folder / arm
        finetune(data.path, arms[arm], arm, "autoint", CONFIG, settings, 1, None, *texts)
    return SimpleNamespace(
        data=data, prompts=prompts, embeddings=embeddings, vectors=vectors, index=index, arms=arms, folder=folder
    )


@pytest.fixture(scope="module")
def evaluated(made):
    output = made.folder / "evaluated"
    return output, evaluate(
        made.data.path, made.arms, "ctrl", output, SETTINGS, prompts=made.prompts, embeddings=made.embeddings
    )


def scored(made, data=None):
    found = made.data if data is None else data
    return scores_with_new_rows("ctrl", made.arms["ctrl"], made.prompts, made.embeddings, found, "test", 64)


def unknown(model, ids, side):
    """Rows [n] whose user or item the model does not know, and the place of its id among the fields."""
    field = id_field(model.layout, side)
    return ids[:, field.slots.start] == field.slots.offset + UNKNOWN, field.place


def test_newcomers_are_scored_by_the_row_that_their_text_gives(made):
    """Row by row, the map's output is put in the place of the unknown id's embedding."""
    model, maps = load_model(made.arms["ctrl"]).eval(), NewRows.load(made.arms["ctrl"])
    ids = made.data.for_model(False).arrays("test").ids
    with torch.inference_mode():
        embedded = model.embedding(torch.from_numpy(ids)).clone()
        for side in SIDES:
            new, place = unknown(model, ids, side)
            for row in np.flatnonzero(new):
                vector = torch.from_numpy(made.vectors[made.index[f"{side}_text"][row]])
                embedded[row, place] = maps(side, vector)
        expected = torch.sigmoid(model.logits(model.interact(embedded, torch.from_numpy(ids)))).numpy()
    np.testing.assert_allclose(scored(made).probabilities, expected, atol=1e-6)


def test_only_rows_with_newcomers_change(made):
    model = load_model(made.arms["ctrl"])
    rows, test = made.data.arrays("test"), made.data.table("test")
    before = arm_scorer("ctrl", made.arms["ctrl"], made.data.layout, SETTINGS)(rows.ids)
    found = scored(made)
    strange = {side: unknown(model, rows.ids, side)[0] for side in SIDES}
    assert found.new == {
        side: len(set(test[f"{side}_id"].filter(pa.array(strange[side])).to_pylist())) for side in SIDES
    }
    assert all(count > 0 for count in found.new.values())
    new = strange["user"] | strange["item"]
    assert 0 < new.sum() < len(new)
    np.testing.assert_allclose(found.probabilities[~new], before[~new], atol=1e-6)
    assert (np.abs(found.probabilities[new] - before[new]) > 1e-6).all()


def test_it_is_reported_beside_what_is_served_and_judged(evaluated, made, tmp_path):
    results = copy.deepcopy(evaluated[1])
    arm, base = results["arms"]["ctrl"], results["arms"]["collaborative"]
    found = arm.pop("with_new_rows")
    lift = results["lift"].pop("with_new_rows")
    without = evaluate(made.data.path, made.arms, "ctrl", tmp_path / "out", SETTINGS)
    assert results == without, "all else is as the model is served on the day of training"
    assert "with_new_rows" not in base
    assert set(found) == {"new", *arm} and set(found["slices"]) == set(arm["slices"])
    assert found["slices"]["warm"] == pytest.approx(arm["slices"]["warm"], abs=1e-6)
    assert found["slices"]["cold"]["logloss"] != arm["slices"]["cold"]["logloss"]
    assert set(lift) == {"confidence", "resamples", "overall", "slices"}
    assert lift["overall"]["auc_difference"] == pytest.approx(found["auc"] - base["auc"])
    assert lift["slices"]["cold"]["auc_difference"] == pytest.approx(
        found["slices"]["cold"]["auc"] - base["slices"]["cold"]["auc"]
    )


def test_it_is_written_with_its_scores(evaluated, made):
    output = evaluated[0]
    found = json.loads((output / "metrics.json").read_text())
    arm = found["arms"]["ctrl"]["with_new_rows"]
    assert json.loads((output / "lift.json").read_text())["arms"]["ctrl"] == found["lift"]
    assert found["lift"]["with_new_rows"]["overall"]["auc"] == arm["auc"]
    written = pq.read_table(output / "scores_ctrl_with_new_rows.parquet")
    assert written["impression_id"].equals(made.data.table("test")["impression_id"])
    assert arm["auc"] == metrics.auc(written["label"].to_numpy(), written["probability"].to_numpy())
    assert arm["new"] == scored(made).new
    assert not (output / "scores_collaborative_with_new_rows.parquet").exists()


def test_a_comparison_scores_alike(evaluated, made, tmp_path):
    """`tandem compare` has one scoring of such an arm, and it is this one."""
    output, trained = evaluated[0], tmp_path / "trained"
    trained.mkdir()
    for file in Path(made.arms["ctrl"]).iterdir():
        (trained / file.name).write_bytes(file.read_bytes())
    places = made.data.path, made.prompts, made.embeddings[0], None, None, trained
    trial = Trial("ctrl", "autoint", "autoint", 1, RunSettings(), *places)
    (task,) = tasks_of(trial, "test")
    task.work()
    alone, beside = (
        pq.read_table(path)["probability"].to_numpy()
        for path in (trial.scores("test"), output / "scores_ctrl_with_new_rows.parquet")
    )
    np.testing.assert_allclose(alone, beside, atol=1e-7)


def test_without_texts_newcomers_stay_unknown_and_it_is_said(made, tmp_path, caplog):
    results = evaluate(made.data.path, made.arms, "ctrl", tmp_path / "out", SETTINGS, prompts=made.prompts)
    assert "with_new_rows" not in results["arms"]["ctrl"] and "with_new_rows" not in results["lift"]
    assert "arm ctrl makes rows of texts, and is given none: no scores with new rows" in caplog.messages


def test_an_arm_of_another_training_set_is_refused(made, tmp_path):
    assert maps_rows(made.arms["ctrl"]) and not maps_rows(made.arms["collaborative"])
    other = training_set(tmp_path / "set", rows=table(seed=5, rows=500))
    with pytest.raises(UserError, match=r"arm 'ctrl': .* was trained on another training set"):
        scored(made, other)
    with pytest.raises(UserError, match="without maps of rows"):
        scores_with_new_rows(
            "collaborative", made.arms["collaborative"], made.prompts, made.embeddings, made.data, "test", 64
        )


@pytest.mark.parametrize("given", [None, {"from": "2", "new": {"item": 3}}])
def test_a_champion_with_rows_for_newcomers_meets_a_candidate_with_its_own(evaluated, made, tmp_path, given):
    bundle = write_bundle(tmp_path / "champion", made.data, weights_of(made.data))
    write_manifest(bundle, {**Bundle.open(bundle).manifest, "lineage": {"rows": given} if given else {}})
    texts = {"prompts": made.prompts, "embeddings": made.embeddings}
    results = evaluate(made.data.path, made.arms, "ctrl", tmp_path / "out", SETTINGS, bundle, **texts)
    arm, beaten = results["arms"]["ctrl"], results["champion"]
    compared = arm["with_new_rows"] if given else arm
    assert beaten["compared_with_new_rows"] == (given is not None)
    assert beaten["lift"]["overall"]["auc_difference"] == pytest.approx(compared["auc"] - beaten["auc"])
    assert arm["auc"] != arm["with_new_rows"]["auc"]
