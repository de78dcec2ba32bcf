"""A training on two machines as a TrainJob: the result of one process; what fails is told and cleaned up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from kubernetes.client import Configuration

from components.dataset.errors import UserError
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig
from components.training import trainjob
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


@dataclass(frozen=True)
class Server:
    """A cluster's API: where its kubeconfig is, and the log of what it was asked to change."""

    kubeconfig: Path
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    command = [sys.executable, "-m", "tests.components.training.trainer_server", str(folder / "requests.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | path())
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context]}
    config |= {"clusters": [{"name": "c", "cluster": {"server": address}}], "users": [{"name": "u", "user": {}}]}
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    yield Server(folder / "kubeconfig", folder / "requests.jsonl")
    process.terminate()
    process.wait()


def path():
    return {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def step_of(tmp_path, monkeypatch):
    """Lets this process be a step of a run on a cluster, whose kubeconfig is named."""

    def enter(kubeconfig):
        # The client reads KUBECONFIG when it is imported.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
        environment = {"TANDEM_HOME": str(tmp_path / "home"), "TANDEM_RUN_ID": "r1", "TANDEM_TRAIN_IMAGE": "i@sha256:0"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    yield enter
    Configuration.set_default(None)


@pytest.fixture
def cluster(server, step_of, monkeypatch):
    """The log of a cluster of which this process is a step, and of which nothing has been asked."""
    monkeypatch.setattr(trainjob, "LOOK", 1)
    server.log.unlink(missing_ok=True)
    step_of(server.kubeconfig)
    yield server.log
    server.log.with_suffix(".full").unlink(missing_ok=True)


def trained(rows, output, **settings):
    """What the step does on several machines, or on one where the settings say so."""
    given = BackboneConfig(**CONFIG), FinetuneSettings(**{**SETTINGS, "nodes": 2, **settings}), 1, None
    return finetune(rows, output, "collaborative", "autoint", *given)


def requests(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_two_machines_train_to_the_result_of_one_process(rows, cluster, tmp_path):
    """The loss curve of one process, and bit for bit what two processes of one machine come to."""
    ways = {"alone": {"nodes": 1}, "pair": {"nodes": 1, "processes": 2}, "out": {"nodes": 2}}
    curves = {name: trained(rows, tmp_path / name, **way)["history"] for name, way in ways.items()}
    losses = {name: [line["train_loss"] for line in curve] for name, curve in curves.items()}
    assert losses["out"] == pytest.approx(losses["alone"], abs=1e-4)
    assert losses["out"] == losses["pair"]
    weights = load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in load_model(tmp_path / "pair").state_dict().items())
    (left, made, gone) = requests(cluster)
    assert (left["method"], left["status"]) == ("DELETE", 404), "there was nothing left over"
    assert (made["method"], made["status"], gone["method"], gone["status"]) == ("POST", 201, "DELETE", 200)
    job = made["content"]
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert job["spec"]["trainer"]["image"] == "i@sha256:0"
    assert job["metadata"]["labels"] == {"tandem.dev/run": "r1"}
    assert job["spec"]["runtimePatches"][0]["manager"] == "trainer.kubeflow.org/kubeflow-sdk"
    assert not list((tmp_path / "home" / "trainjobs").iterdir()), "nothing is left on the shared volume"


def test_a_wrong_input_is_the_users_and_the_job_is_gone(cluster, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no training set"):
        trained(tmp_path / "nothing", tmp_path / "out")
    assert requests(cluster)[-1]["method"] == "DELETE"
    assert not (tmp_path / "out").exists()


def test_a_job_that_fails_says_why_and_is_gone(rows, cluster, tmp_path):
    """The file of the rows is damaged: no fault of the settings, and each try would meet it again."""
    damaged = shutil.copytree(rows, tmp_path / "damaged")
    (damaged / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RuntimeError, match=r"(?s)is Failed: .*Arrow"):
        trained(damaged, tmp_path / "out")
    assert requests(cluster)[-1]["method"] == "DELETE"


def test_a_job_that_is_not_done_in_time_is_stopped(rows, cluster, tmp_path):
    """The cluster has no room for its machines, say."""
    cluster.with_suffix(".full").touch()
    with pytest.raises(RuntimeError, match=r"was not done in 0\.01 minutes; raise nodes_minutes"):
        trained(rows, tmp_path / "out", nodes_minutes=0.01)
    assert [line["method"] for line in requests(cluster)] == ["DELETE", "POST", "DELETE"]


def test_a_step_that_is_terminated_takes_its_job_with_it(rows, cluster, server, tmp_path):
    cluster.with_suffix(".full").touch()
    code = (
        "import sys; from pathlib import Path; from tests.components.training.test_trainjob import trained;"
        "trained(*map(Path, sys.argv[1:]))"
    )
    environment = os.environ | path() | {"KUBECONFIG": str(server.kubeconfig)}
    command = [sys.executable, "-c", code, str(rows), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (cluster.exists() and any(line["method"] == "POST" for line in requests(cluster))):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert requests(cluster)[-1]["method"] == "DELETE"


def test_without_a_cluster_it_is_said(rows, step_of, tmp_path, monkeypatch):
    step_of(tmp_path / "none")
    with pytest.raises(UserError, match="needs a Kubernetes cluster"):
        trained(rows, tmp_path / "out")
    monkeypatch.delenv("TANDEM_TRAIN_IMAGE")
    with pytest.raises(UserError, match="TANDEM_TRAIN_IMAGE"):
        trained(rows, tmp_path / "out")
