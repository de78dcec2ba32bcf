"""The align step on a log whose texts and rows tell the same story."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.align.settings import AlignSettings
from components.align.step import Alignment, align
from components.dataset.embeddings import write_embeddings
from components.dataset.errors import UserError
from components.dataset.prompts import TEXT_SCHEMA, text_hash, write_prompt_set
from components.dataset.training_set import TrainingSet
from components.models.config import BackboneConfig
from components.models.registry import build_backbone, reads_history
from components.training.checkpoints import load_model, save_model
from components.training.loop import TrainingError
from components.training.stage import LOSS
from tests.components.evaluate.logs import training_set

SEQUENCE = BackboneConfig(embedding_dim=8, hidden=(8,), queries=2, encoder_layers=1, dropout=0.0)
CONFIG = BackboneConfig(embedding_dim=8, hidden=(16,), layers=1, dropout=0.0)
SETTINGS = AlignSettings(epochs=3, batch_size=128, temperature=0.1, learning_rate=3e-3, health_rows=128)
DIM = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A training set, prompts that name each user and item, and a vector for each of them."""
    folder = tmp_path_factory.mktemp("align")
    data = training_set(folder / "training_set")
    keys: dict[str, int] = {}
    index = {}
    for part in ("train", "valid", "test"):
        rows = data.table(part)
        columns = {"user_text": rows["user_id"].to_pylist(), "item_text": rows["item_id"].to_pylist()}
        index[part] = {
            name: np.array([keys.setdefault(key, len(keys)) for key in names], np.int32)
            for name, names in columns.items()
        }
    texts = pa.table(
        {
            "text_id": pa.array(range(len(keys)), pa.int32()),
            "side": ["user" if key.startswith("u") else "item" for key in keys],
            "text": list(keys),
            "hash": [text_hash(key) for key in keys],
            "spans": pa.array([[] for _ in keys], TEXT_SCHEMA.field("spans").type),
        }
    )
    write_prompt_set(folder / "prompts", texts, index, {}, {"granularity": "entity", "prompt_hash": "p"})
    vectors = np.random.default_rng(0).normal(size=(len(keys), DIM)).astype(np.float32)
    embed(folder / "embeddings", vectors)
    return folder, vectors


def embed(path, vectors):
    cache = {"hits": 0, "misses": len(vectors), "seconds": 0.0, "seconds_saved": 0.0}
    meta = {"plm": "tiny", "plm_revision": None, "plm_digest": "d", "pooling": "mean", "cache": cache}
    write_embeddings(path, vectors, np.arange(len(vectors), dtype=np.int32), meta)


def aligned(inputs, output, embeddings=None, settings=SETTINGS, seed=1):
    folder, _ = inputs
    paths = folder / "training_set", folder / "prompts", [embeddings or folder / "embeddings"], output
    return align(*paths, "autoint", CONFIG, settings, seed)


def test_a_model_that_was_pre_trained_is_aligned_from_there(inputs, tmp_path):
    """At a rate of next to nothing the weights remain what they were at the beginning."""
    data = TrainingSet.open(inputs[0] / "training_set").for_model(reads_history("srp4ctr"))
    torch.manual_seed(5)
    encoder = build_backbone("srp4ctr", data.layout, SEQUENCE.of_encoder())
    save_model(tmp_path / "pretrained", encoder, {})
    still = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-12, "warmup_from": 1e-12, "weight_decay": 0})
    paths = inputs[0] / "training_set", inputs[0] / "prompts", [inputs[0] / "embeddings"], tmp_path / "out"
    align(*paths, "srp4ctr", SEQUENCE, still, 1, tmp_path / "pretrained")
    found = load_model(tmp_path / "out")
    torch.testing.assert_close(found.encoder.table.weight, encoder.encoder.table.weight)
    assert found.encoder.table.weight.abs().sum() > 0


def test_rows_find_their_texts(inputs, tmp_path):
    health = aligned(inputs, tmp_path / "out")
    before, after = health["before"], health["after"]
    assert health["verdict"] == "healthy"
    assert after["loss"] < before["loss"]
    assert after["retrieval_by_text"] > 5 * before["retrieval_by_text"]
    assert after["retrieval_by_table"] > 0.2
    assert json.loads((tmp_path / "out" / "health.json").read_text()) == health
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())["history"]
    assert curve[-1]["epoch"] == SETTINGS.epochs
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert [line["epoch"] for line in curve] == sorted({line["epoch"] for line in curve})


def test_a_large_table_is_aligned_by_sparse_gradients(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("components.models.embedding.SPARSE_FROM", 1)
    health = aligned(inputs, tmp_path / "out")
    assert health["verdict"] == "healthy"
    assert health["after"]["loss"] < 0.8 * health["before"]["loss"]
    assert load_model(tmp_path / "out").embedding.table.weight[0].abs().sum() == 0


def test_fewer_rows_are_drawn_by_the_seed_and_nothing_else_is_read(inputs, tmp_path, monkeypatch):
    seen = []
    losses = Alignment.losses

    def noted(self, rows):
        seen.append(rows.tolist())
        return losses(self, rows)

    monkeypatch.setattr(Alignment, "losses", noted)
    fewer = SETTINGS.model_copy(update={"epochs": 2, "rows": 2 * SETTINGS.batch_size + 1})
    for name, seed in (("a", 1), ("b", 2)):
        aligned(inputs, tmp_path / name, settings=fewer, seed=seed)
    drawn = [{row for batch in part for row in batch} for part in (seen[:4], seen[4:])]
    assert [len(batch) for batch in seen] == [SETTINGS.batch_size] * 8
    assert all(len(rows) <= fewer.rows for rows in drawn)
    assert drawn[0] != drawn[1]


def test_neighbours_are_told_in_words(inputs, tmp_path):
    """A row that is near its own text says so; any other nearest text is one of the same part's rows."""
    folder, _ = inputs
    health = aligned(inputs, tmp_path / "out")
    rows = TrainingSet.open(folder / "training_set").table("valid")
    said = {
        f"{user} {item}"
        for user, item in zip(*(rows[f"{side}_id"].to_pylist() for side in ("user", "item")), strict=True)
    }
    assert len(health["neighbours"]) == 6
    for pair in health["neighbours"]:
        assert pair["row"] in said and pair["nearest"] in said
        assert pair["right"] == (pair["row"] == pair["nearest"])


def test_texts_that_say_nothing_cannot_be_found(inputs, tmp_path):
    """The measure is honest: with one vector for all texts retrieval stays at chance, and the collapse is named."""
    _, vectors = inputs
    embed(tmp_path / "same", np.ones_like(vectors))
    health = aligned(inputs, tmp_path / "out", tmp_path / "same")
    assert health["verdict"] == "collapsed"
    assert any("text" in reason for reason in health["reasons"])


def test_an_alignment_that_learnt_nothing_is_no_healthy_one(inputs, tmp_path, caplog):
    """At a rate of next to nothing the table stays where it began, all rows together; and that is said."""
    still = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-9, "warmup_from": 1e-9})
    health = aligned(inputs, tmp_path / "out", settings=still)
    assert health["verdict"] == "collapsed"
    assert all("the table side" in reason and "as before the alignment" in reason for reason in health["reasons"])
    assert health["after"]["retrieval_by_chance"] < 0.1
    assert all(reason in caplog.text for reason in health["reasons"])


def test_nothing_of_the_other_side_is_kept(inputs, tmp_path):
    aligned(inputs, tmp_path / "out")
    fresh = set(load_model(tmp_path / "out").state_dict())
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == fresh
    meta = json.loads((tmp_path / "out" / "config.json").read_text())["meta"]
    assert (meta["plm"], meta["plm_digest"], meta["seed"]) == ("tiny", "d", 1)


def test_the_same_seed_gives_the_same_model(inputs, tmp_path):
    short = SETTINGS.model_copy(update={"epochs": 1})
    for name, seed in (("one", 1), ("other", 1), ("third", 2)):
        aligned(inputs, tmp_path / name, settings=short, seed=seed)
    one, other, third = (load_model(tmp_path / name).embedding.table.weight for name in ("one", "other", "third"))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


def test_embeddings_of_other_prompts_are_refused(inputs, tmp_path):
    _, vectors = inputs
    embed(tmp_path / "few", vectors[:5])
    with pytest.raises(UserError, match="run encode again"):
        aligned(inputs, tmp_path / "out", tmp_path / "few")
    assert not (tmp_path / "out").exists()


def test_embeddings_that_are_no_numbers_are_refused(inputs, tmp_path):
    _, vectors = inputs
    broken = vectors.copy()
    broken[7, 3] = np.nan
    embed(tmp_path / "broken", broken)
    with pytest.raises(UserError, match="text 7"):
        aligned(inputs, tmp_path / "out", tmp_path / "broken")


def test_a_loss_that_is_no_number_leaves_nothing(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(Alignment, "losses", lambda self, _: {LOSS: self.contrast.heads.text.weight.sum() * math.nan})
    with pytest.raises(TrainingError, match="the align loss is no finite number; lower its learning_rate"):
        aligned(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_rate_rises_linearly_and_stays():
    work = Alignment.__new__(Alignment)
    work.settings = AlignSettings(learning_rate=5e-4, warmup_from=1e-5, warmup_share=0.1)
    rates = [5e-4 * work.rate(step, 100) for step in (0, 5, 10, 99)]
    assert rates == pytest.approx([1e-5, 2.55e-4, 5e-4, 5e-4])


def test_two_processes_have_the_curve_of_one(inputs, tmp_path, monkeypatch):
    """Each process's texts meet the rows of both: with its own rows alone the loss would be lower by log 2.

    For an epoch at a low rate: where two sub-spaces are all but equally similar, rounding decides which one learns.
    """
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    curves = []
    for processes in (1, 2):
        settings = SETTINGS.model_copy(update={"epochs": 1, "learning_rate": 1e-3, "processes": processes})
        aligned(inputs, tmp_path / str(processes), settings=settings)
        found = json.loads((tmp_path / str(processes) / "curve.json").read_text())["history"]
        curves.append([line["loss"] for line in found])
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert curves[0][0] - curves[0][-1] > 0.1, "the curve falls"
    assert not list((tmp_path / "home").rglob("*.safetensors")), "what was finished leaves no checkpoint"


@pytest.mark.parametrize("steps", [1, 18, 19], ids=["first step", "end of an epoch", "into the second epoch"])
def test_an_alignment_that_was_cut_off_goes_on_to_the_same_result(inputs, tmp_path, monkeypatch, steps):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    settings = SETTINGS.model_copy(update={"checkpoint_minutes": 1e-9, "epochs": 2})
    config = CONFIG.model_copy(update={"dropout": 0.3})
    monkeypatch.setattr("tests.components.align.test_step.CONFIG", config)
    whole = aligned(inputs, tmp_path / "whole", settings=settings)
    step, done = Alignment._step, []

    def cut_off(self, rows):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(rows)
        step(self, rows)

    monkeypatch.setattr(Alignment, "_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        aligned(inputs, tmp_path / "cut", settings=settings)
    rest = []
    monkeypatch.setattr(Alignment, "_step", lambda self, rows: (rest.append(rows), step(self, rows)))
    again = aligned(inputs, tmp_path / "cut", settings=settings)
    assert len(done) + len(rest) == 36
    assert again == whole
    one, other = (load_model(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    curves = [json.loads((tmp_path / name / "curve.json").read_text())["history"] for name in ("whole", "cut")]
    assert [line["loss"] for line in curves[0]] == [line["loss"] for line in curves[1]]
