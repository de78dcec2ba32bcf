"""The finetune step: both arms start and learn as they should, and wrong checkpoints are refused."""

import json

import pytest
import torch

from components.dataset.errors import UserError
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.training.checkpoints import load_model, save_model
from tests.components.evaluate.logs import table, training_set

CONFIG = BackboneConfig(embedding_dim=4, hidden=(8,), layers=1)
SETTINGS = FinetuneSettings(epochs=2, batch_size=256, learning_rate=0.01, threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "training_set"
    return folder, training_set(folder)


def aligned(data, folder, value=0.25):
    """A checkpoint whose every weight is `value`, so that what was taken over can be told."""
    model = build_backbone("autoint", data.layout, CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    save_model(folder, model, {})
    return folder


def test_an_arm_learns_and_tells_its_curve(data, tmp_path):
    path, _ = data
    curve = finetune(path, tmp_path / "out", "collaborative", "autoint", CONFIG, SETTINGS, 1, None)
    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == curve
    assert curve["arm"] == "collaborative"
    first, second = curve["history"]
    assert second["train_loss"] < first["train_loss"]
    meta = json.loads((tmp_path / "out" / "config.json").read_text())["meta"]
    assert (meta["arm"], meta["seed"], meta["best_epoch"]) == ("collaborative", 1, curve["best_epoch"])


def test_the_same_seed_gives_the_same_model(data, tmp_path):
    path, _ = data
    for name in ("one", "other"):
        finetune(path, tmp_path / name, "collaborative", "autoint", CONFIG, SETTINGS, 1, None)
    one, other = (load_model(tmp_path / name).state_dict() for name in ("one", "other"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_aligned_checkpoint_gives_all_but_the_output(data, tmp_path, monkeypatch):
    """CTRL, section 3.4: the representation goes on from stage 1, the linear output starts anew."""
    path, opened = data
    started = {}

    def look(learner, *_):
        started.update({name: value.clone() for name, value in learner.model.state_dict().items()})
        raise InterruptedError

    monkeypatch.setattr("components.finetune.step.fit", look)
    checkpoint = aligned(opened, tmp_path / "aligned")
    with pytest.raises(InterruptedError):
        finetune(path, tmp_path / "out", "ctrl", "autoint", CONFIG, SETTINGS, 1, checkpoint)
    parameters = dict(build_backbone("autoint", opened.layout, CONFIG).named_parameters())
    for name in parameters:
        taken = bool((started[name] == 0.25).all())
        assert taken != name.startswith("head."), name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["backbone", "config", "data"])
def test_a_checkpoint_of_something_else_is_refused(data, tmp_path, other):
    path, opened = data
    checkpoint = aligned(opened, tmp_path / "aligned")
    backbone, config = "autoint", CONFIG
    if other == "backbone":
        backbone = "dcn"
    elif other == "config":
        config = BackboneConfig(embedding_dim=8, hidden=(8,), layers=1)
    else:
        training_set(tmp_path / "training_set", rows=table(seed=5, rows=900))
        path = tmp_path / "training_set"
    with pytest.raises(UserError, match="run align again"):
        finetune(path, tmp_path / "out", "ctrl", backbone, config, SETTINGS, 1, checkpoint)
    assert not (tmp_path / "out").exists()


def test_an_arm_without_texts_is_the_same_whatever_is_made_of_texts(data, tmp_path):
    path, _ = data
    for name, more in (("plain", {}), ("asked", {"map_rows": ("user", "item"), "auxiliary": {"weight": 0.1}})):
        settings = FinetuneSettings(**{**SETTINGS.model_dump(), **more})
        finetune(path, tmp_path / name, "collaborative", "autoint", CONFIG, settings, 1, None)
        assert not (tmp_path / name / "row_maps.safetensors").exists()
    one, other = (load_model(tmp_path / name).state_dict() for name in ("plain", "asked"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
