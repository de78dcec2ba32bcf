"""FLIP's pre-training: both sides learn to tell what is hidden, from each other, in one process as in several."""

import json
import os

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from components.dataset.errors import UserError
from components.dataset.layout import PADDING
from components.dataset.training_set import TrainingSet
from components.evaluate.scoring import text_scores
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.registry import BACKBONES, build_backbone
from components.reconstruct.settings import ReconstructSettings
from components.reconstruct.step import Reconstruction, reconstruct
from components.run import write_json
from components.training import progress
from components.training.checkpoints import load_model, save_model
from components.training.launch import train_together
from components.training.reader import open_reader
from components.training.tokens import TokenRows
from tests.components.reconstruct.making import MODEL, inputs_of, settings_of
from tests.components.reconstruct.together import one_step, write_step


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return inputs_of(tmp_path_factory.mktemp("reconstruct"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))


def told(inputs, output, backbone="autoint", seed=1, **changes):
    training_set, prompts, plm = inputs
    return reconstruct(training_set, prompts, output, backbone, MODEL, settings_of(plm, **changes), seed)


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """A pre-training of some epochs."""
    folder = tmp_path_factory.mktemp("made")
    os.environ.setdefault("TANDEM_HOME", str(folder / "home"))
    return folder, told(inputs, folder / "both", epochs=16, text_ratio=0.4, table_ratio=0.3)


def test_all_losses_fall_on_rows_that_were_not_seen(made):
    folder, health = made
    before, after = health["before"], health["after"]
    # A PLM that never learnt to read tells few texts apart, so that the contrast has less to go by.
    for task, share in {"icl": 0.97, "mlm": 0.9, "mtm": 0.9}.items():
        assert after[task] < share * before[task], task
    curve = json.loads((folder / "both" / "curve.json").read_text())["history"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    for line in curve:
        assert line["loss"] == pytest.approx(line["icl"] + line["mlm"] + line["mtm"], rel=1e-5)


def test_the_checkpoint_holds_the_collaborative_half_alone(made, inputs):
    folder, _ = made
    model = load_model(folder / "both")
    assert model.layout == TrainingSet.open(inputs[0]).for_model(False).layout
    assert not any("plm" in name or "heads" in name for name in model.state_dict())
    about = json.loads((folder / "both" / "plm" / "trained.json").read_text())
    assert about["mode"] == "frozen" and not load_file(folder / "both" / "plm" / "trained.safetensors")
    meta = json.loads((folder / "both" / "config.json").read_text())["meta"]
    assert meta["plm_digest"] == about["plm_digest"] and meta["plm"] == inputs[2].name


def test_finetune_starts_from_it(made, inputs, tmp_path):
    settings = FinetuneSettings(epochs=1, batch_size=64, threads=1)
    finetune(inputs[0], tmp_path / "out", "flip", "autoint", MODEL, settings, 1, made[0] / "both")
    finetune(inputs[0], tmp_path / "scratch", "a", "autoint", MODEL, settings, 1, None)
    folders = made[0] / "both", tmp_path / "out", tmp_path / "scratch"
    aligned, tuned, scratch = (load_model(path).embedding.table.weight.detach() for path in folders)
    assert float((tuned - aligned).norm()) < float((scratch - aligned).norm())


@pytest.mark.parametrize("only", ["icl", "mlm", "mtm"])
def test_each_task_can_stand_alone(inputs, tmp_path, only):
    weights = {f"{task}_weight": float(task == only) * 2 for task in ("icl", "mlm", "mtm")}
    health = told(inputs, tmp_path / "out", **weights)
    assert {"icl", "mlm", "mtm"} & set(health["after"]) == {only}
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())["history"]
    assert curve[-1]["loss"] == pytest.approx(2 * curve[-1][only], rel=1e-5)


def test_switching_every_task_off_is_refused():
    with pytest.raises(ValidationError, match="all 0"):
        ReconstructSettings(icl_weight=0, mlm_weight=0, mtm_weight=0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A log whose histories keep likes and dislikes apart."""
    return inputs_of(tmp_path_factory.mktemp("labelled"), history={"length": 3, "events": "per_label"})


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_every_backbone_can_be_pre_trained(inputs, labelled, tmp_path, backbone):
    given = labelled if backbone == "autoint_history" else inputs
    health = told(given, tmp_path / "out", backbone, rows=128)
    assert all(health["after"][task] > 0 for task in ("icl", "mlm", "mtm"))
    assert type(load_model(tmp_path / "out")) is BACKBONES[backbone]


@pytest.mark.parametrize("strategy", ["plm", "both"])
def test_clicks_are_told_by_the_plm_beside_a_backbone_with_a_history(labelled, tmp_path, strategy):
    training_set, prompts, _ = labelled
    told(labelled, tmp_path / "made", "autoint_history", rows=128)
    settings = FinetuneSettings(epochs=1, batch_size=256, threads=1)
    start = "autoint_history", MODEL, settings, 1, tmp_path / "made", prompts
    finetune(training_set, tmp_path / "arm", strategy, *start, strategy=strategy)
    scores = text_scores(strategy, tmp_path / "arm", prompts, TrainingSet.open(training_set), "test")
    assert len(np.unique(scores)) > 1


def test_noise_is_drawn_from_the_fields_alone(labelled, tmp_path):
    """By frequency in the train part; what stands in a history is never hidden, and is no noise."""
    training_set, prompts, plm = labelled
    data = TrainingSet.open(training_set)
    assert data.layout.history
    settings = settings_of(plm)
    texts = TokenRows.read(prompts, plm, {"train": None, "valid": None})
    network = build_backbone("autoint_history", data.layout, MODEL)
    reader = open_reader(texts.tokens, settings, torch.device("cpu"), 0)
    noise = Reconstruction(network, reader, texts, data, torch.arange(60), settings, 1).heads.noise
    counts = np.zeros(data.layout.vocabulary_size)
    for row in data.arrays("train").ids:
        for slots in data.layout.fields:
            for id_ in row[slots.start : slots.stop]:
                counts[id_] += id_ != PADDING
    drawn = torch.diff(noise.cumulated, prepend=torch.zeros(1))
    np.testing.assert_allclose(drawn.numpy(), counts / counts.sum(), atol=1e-12)
    only_seen = [slots.offset for slots in data.layout.history if slots.name == "history_label"]
    assert only_seen and not drawn[only_seen[0] :].any()


def test_a_plm_that_is_named_keeps_the_first_token():
    assert ReconstructSettings().plm.pooling == ReconstructSettings(plm={"layers": 2}).plm.pooling == "cls"
    assert ReconstructSettings(plm={"layers": 2, "pooling": "mean"}).plm.pooling == "mean"


@pytest.mark.parametrize("mode", ["last_layer", "lora", "full"])
def test_what_is_trained_of_the_plm_lies_beside_the_model(inputs, tmp_path, mode):
    told(inputs, tmp_path / "out", plm_mode=mode, rows=256, plm_learning_rate=1e-3)
    kept = load_file(tmp_path / "out" / "plm" / "trained.safetensors")
    assert bool(kept) and all("lora_" in name for name in kept) == (mode == "lora")
    assert (mode == "full") == any("word_embeddings" in name for name in kept)
    assert not any("layer.1" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


@pytest.mark.parametrize(
    "changes", [{"text_masks": "token"}, {"vocabulary": "whole"}, {"mask_padding": False, "scale_scores": False}]
)
def test_variants_run(inputs, tmp_path, changes):
    assert told(inputs, tmp_path / "out", rows=256, **changes)["after"]["mlm"] > 0


def test_a_warm_start_goes_on_from_the_champion(inputs, tmp_path):
    """At a rate of next to nothing the weights remain what they were at the beginning."""
    training_set, prompts, plm = inputs
    layout = TrainingSet.open(training_set).for_model(False).layout
    champion = build_backbone("dcn", layout, MODEL)
    save_model(tmp_path / "kept" / "candidate", champion, {})
    said = {"name": "tandem-shop", "version": "3", "run_id": "r"}
    write_json(tmp_path / "kept" / "champion.json", said)
    still = settings_of(plm, rows=128, learning_rate=1e-12, weight_decay=0)
    for name, kept in (("warm", tmp_path / "kept"), ("fresh", None)):
        reconstruct(training_set, prompts, tmp_path / name, "dcn", MODEL, still, 5, kept)
    warm, fresh = (dict(load_model(tmp_path / name).named_parameters()) for name in ("warm", "fresh"))
    for name, value in champion.named_parameters():
        torch.testing.assert_close(warm[name], value)
    assert not torch.allclose(fresh["embedding.table.weight"], champion.embedding.table.weight, atol=1e-3)
    assert json.loads((tmp_path / "warm" / "config.json").read_text())["meta"]["champion"] == said
    with pytest.raises(UserError, match=r"another backbone or configuration.*warm_start: false"):
        reconstruct(training_set, prompts, tmp_path / "other", "autoint", MODEL, still, 5, tmp_path / "kept")


def test_rows_are_a_sample_that_the_seed_decides(inputs, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        told(inputs, tmp_path / name, rows=200, seed=seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["meta"]["rows"] == 200


def test_two_processes_compute_what_one_does(inputs, tmp_path):
    training_set, prompts, plm = inputs
    alone = one_step(training_set, prompts, plm.name)
    paths = {"training_set": training_set, "prompts": prompts, "plm": plm.name}
    train_together(write_step, 2, threads=1, **paths, output=tmp_path / "found")
    assert {"loss.icl", "loss.mlm", "loss.mtm", "heads.tokens.decoder", "heads.noise.bias"} <= set(alone)
    for rank in range(2):
        found = load_file(f"{tmp_path / 'found'}.{rank}")
        assert set(found) == set(alone)
        for name, value in alone.items():
            # A bias before a batch norm has no gradient but rounding: the norm takes every shift away.
            if name != "model.deep.0.bias":
                torch.testing.assert_close(
                    found[name], value, atol=5e-4, rtol=5e-3, msg=lambda text, of=name: of + text
                )


def test_a_killed_pre_training_goes_on_to_the_same_result(inputs, tmp_path, monkeypatch):
    whole = {"epochs": 2, "checkpoint_minutes": 1e-9}
    told(inputs, tmp_path / "whole", **whole)
    step, taken = Reconstruction._step, []

    def killed(self, rows):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(len(rows))
        step(self, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Reconstruction, "_step", killed)
        told(inputs, tmp_path / "parts", **whole)
    assert list((progress.home() / "checkpoints").glob("reconstruct-*"))
    told(inputs, tmp_path / "parts", **whole)
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert not list((progress.home() / "checkpoints").glob("reconstruct-*"))


def test_the_rate_falls_by_half_a_cosine():
    work = Reconstruction.__new__(Reconstruction)
    assert [round(work.rate(step, 100), 4) for step in (0, 25, 50, 100)] == [1.0, 0.8536, 0.5, 0.0]
