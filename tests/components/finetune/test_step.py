"""The finetune step: both arms start and learn as they should, and wrong checkpoints are refused."""

import json
import logging
import subprocess
import sys
import time

import psutil
import pytest
import torch

from components.dataset.errors import UserError
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.training.checkpoints import load_model, save_model
from tests.components.evaluate.logs import table, training_set
from tests.pipelines.shop import ROOT

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
    with pytest.raises(UserError, match="run stage 1 again"):
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


PLAIN = CONFIG.model_copy(update={"dropout": 0.0})
LONGER = SETTINGS.model_copy(update={"epochs": 3})


def together(data, output, processes, settings=LONGER, config=PLAIN):
    settings = settings.model_copy(update={"processes": processes})
    return finetune(data[0], output, "collaborative", "autoint", config, settings, 1, None)


def weights(folder):
    return load_model(folder).state_dict()


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_two_processes_have_the_curve_of_one(data, tmp_path, home):
    alone = together(data, tmp_path / "alone", 1)["history"]
    both = together(data, tmp_path / "both", 2)["history"]
    assert [line["train_loss"] for line in both] == pytest.approx([line["train_loss"] for line in alone], abs=1e-4)
    # A bias before batch norm has no gradient but rounding, which Adam makes steps of; the running mean trails them.
    valid = [[line["valid_logloss"] for line in curve] for curve in (both, alone)]
    assert valid[0] == pytest.approx(valid[1], abs=2e-3)
    assert len({round(line["train_loss"], 3) for line in alone}) == len(alone), "the curve falls"
    assert not list(home.rglob("*.safetensors")), "what was finished leaves no checkpoint"


OFTEN = LONGER.model_copy(update={"checkpoint_minutes": 1e-6})


def started(data, output, processes):
    """The step in processes of its own, slowed down."""
    settings = OFTEN.model_copy(update={"processes": processes}).model_dump_json()
    command = [sys.executable, "-m", "tests.components.finetune.slowly", data[0], output, processes, settings]
    return subprocess.Popen([*map(str, command), CONFIG.model_dump_json()], cwd=ROOT, stdout=subprocess.DEVNULL)


def wait_for_checkpoint(home, process):
    deadline = time.monotonic() + 120
    while not list(home.glob("checkpoints/finetune-*")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_result(data, tmp_path, home, caplog):
    """With dropout: the random state is part of what is kept."""
    together(data, tmp_path / "whole", 1, OFTEN, CONFIG)
    with started(data, tmp_path / "killed", 1) as killed:
        wait_for_checkpoint(home, killed)
        killed.kill()
    assert not (tmp_path / "killed").exists()
    (kept,) = (home / "checkpoints").iterdir()
    with caplog.at_level("INFO", logger="tandem"):
        logging.getLogger("tandem").propagate = True
        curve = together(data, tmp_path / "killed", 1, OFTEN, CONFIG)
    assert "from a checkpoint" in caplog.text
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    whole = json.loads((tmp_path / "whole" / "curve.json").read_text())
    for line, other in zip(curve["history"], whole["history"], strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}
    assert not kept.exists()


def test_a_killed_worker_is_started_again_and_the_result_is_the_same(data, tmp_path, home):
    together(data, tmp_path / "whole", 2, OFTEN, CONFIG)
    with started(data, tmp_path / "hurt", 2) as running:
        wait_for_checkpoint(home, running)
        family = psutil.Process(running.pid).children(recursive=True)
        workers = [process for process in family if "components.training.worker" in process.cmdline()[3]]
        assert len(workers) == 2
        workers[-1].kill()
        assert running.wait(300) == 0
    assert same(weights(tmp_path / "hurt"), weights(tmp_path / "whole"))
