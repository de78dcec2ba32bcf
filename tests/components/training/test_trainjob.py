"""A training on two machines as a TrainJob: the result of one process; what fails is told and cleaned up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.training.checkpoints import load_model
from tests.components.evaluate.logs import training_set
from tests.pipelines.shop import ROOT

pytestmark = pytest.mark.slow
CONFIG = {"embedding_dim": 4, "hidden": [8], "layers": 1, "dropout": 0.0}
SETTINGS = {"epochs": 2, "batch_size": 256, "learning_rate": 0.01, "threads": 1}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "training_set"
    training_set(folder)
    return folder


@pytest.fixture
def cluster(tmp_path):
    """The environment of a step on a cluster, and the log of what the API was asked to change."""
    log = tmp_path / "requests.jsonl"
    command = [sys.executable, "-m", "tests.components.training.trainer_server", str(log)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | path())
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context]}
    config |= {"clusters": [{"name": "c", "cluster": {"server": address}}], "users": [{"name": "u", "user": {}}]}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    environment = os.environ | path() | {"KUBECONFIG": str(tmp_path / "kubeconfig"), "OMP_NUM_THREADS": "1"}
    environment |= {"TANDEM_HOME": str(tmp_path / "home"), "TANDEM_RUN_ID": "r1", "TANDEM_TRAIN_IMAGE": "i@sha256:0"}
    yield environment, log
    server.terminate()
    server.wait()


def path():
    return {"PYTHONPATH": str(ROOT)}


def step(rows, output, **settings):
    """The command of a step that trains on several machines."""
    content = {"model": CONFIG, "settings": {**SETTINGS, "nodes": 2, **settings}}
    code = (
        "import json, logging, sys; from pathlib import Path; logging.basicConfig(level='INFO');"
        "from components.finetune.settings import FinetuneSettings; from components.finetune.step import finetune;"
        "from components.models.config import BackboneConfig; given = json.loads(sys.argv[1]);"
        "finetune(Path(sys.argv[2]), Path(sys.argv[3]), 'collaborative', sys.argv[4],"
        "BackboneConfig(**given['model']), FinetuneSettings(**given['settings']), 1, None)"
    )
    return [sys.executable, "-c", code, json.dumps(content), str(rows), str(output), "autoint"]


def requests(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_two_machines_train_to_the_result_of_one_process(rows, cluster, tmp_path, monkeypatch):
    """The loss curve of one process, and bit for bit what two processes of one machine come to."""
    environment, log = cluster
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    curves = {}
    for name, processes in (("alone", 1), ("pair", 2)):
        settings = FinetuneSettings(**SETTINGS, processes=processes)
        arguments = "collaborative", "autoint", BackboneConfig(**CONFIG), settings, 1, None
        curves[name] = finetune(rows, tmp_path / name, *arguments)["history"]
    done = subprocess.run(step(rows, tmp_path / "out"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "out" / "curve.json").read_text())["history"]
    losses = {name: [line["train_loss"] for line in curve] for name, curve in (*curves.items(), ("out", together))}
    assert losses["out"] == pytest.approx(losses["alone"], abs=1e-4)
    assert losses["out"] == losses["pair"]
    weights = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in load_model(tmp_path / "pair").state_dict().items())
    (left, made, gone) = requests(log)
    assert (left["method"], left["status"]) == ("DELETE", 404), "there was nothing left over"
    assert (made["method"], made["status"], gone["method"], gone["status"]) == ("POST", 201, "DELETE", 200)
    job = made["content"]
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert job["spec"]["trainer"]["image"] == "i@sha256:0"
    assert job["metadata"]["labels"] == {"tandem.dev/run": "r1"}
    assert job["spec"]["runtimePatches"][0]["manager"] == "trainer.kubeflow.org/kubeflow-sdk"
    assert not list((tmp_path / "home" / "trainjobs").iterdir()), "nothing is left on the shared volume"


def test_a_wrong_input_is_the_users_and_the_job_is_gone(rows, cluster, tmp_path):
    environment, log = cluster
    command = step(rows / "nothing", tmp_path / "out")
    (rows / "nothing").mkdir(exist_ok=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "no training set" in done.stderr.splitlines()[-1]
    assert requests(log)[-1]["method"] == "DELETE"
    assert not (tmp_path / "out").exists()


def test_a_job_that_fails_says_why_and_is_gone(rows, cluster, tmp_path):
    """The file of the rows is damaged: no fault of the settings, and each try would meet it again."""
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(rows, damaged)
    (damaged / "train.parquet").write_bytes(b"PAR1 and no more")
    environment, log = cluster
    done = subprocess.run(step(damaged, tmp_path / "out"), env=environment, capture_output=True, text=True, check=False)
    last = [line for line in done.stderr.splitlines() if line.startswith("RuntimeError")][-1]
    assert "is Failed: " in last and "Arrow" in last
    assert requests(log)[-1]["method"] == "DELETE"


def test_a_job_that_is_not_done_in_time_is_stopped(rows, cluster, tmp_path):
    environment, log = cluster
    command = step(rows, tmp_path / "out", epochs=1000, patience=1000, nodes_minutes=0.01)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "was not done in 0.01 minutes; raise nodes_minutes" in done.stderr.splitlines()[-1]
    assert requests(log)[-1]["method"] == "DELETE"


def test_a_step_that_is_terminated_takes_its_job_with_it(rows, cluster, tmp_path):
    environment, log = cluster
    command = step(rows, tmp_path / "out", epochs=1000, patience=1000)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (log.exists() and any(line["method"] == "POST" for line in requests(log))):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert requests(log)[-1]["method"] == "DELETE"


def test_without_a_cluster_it_is_said(rows, tmp_path):
    environment = os.environ | path() | {"KUBECONFIG": str(tmp_path / "none"), "TANDEM_HOME": str(tmp_path / "home")}
    environment.pop("TANDEM_TRAIN_IMAGE", None)
    for more, message in (({}, "TANDEM_TRAIN_IMAGE"), ({"TANDEM_TRAIN_IMAGE": "i"}, "needs a Kubernetes cluster")):
        command = step(rows, tmp_path / "out")
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
        assert "UserError" in done.stderr.splitlines()[-1]
        assert message in done.stderr.splitlines()[-1]
