"""The registry against an MLflow server with PostgreSQL and S3, as a team runs it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from components.registry import client, tracking
from components.registry.connection import connect
from components.run import StepRecord
from tests.components.registry.making import add_version, new_dataset, own_registry, pointed, promote, said
from tests.components.registry.test_aliases import CHALLENGER
from tests.services.servers import free_port, needed, postgres, process

pytestmark = [pytest.mark.services, pytest.mark.slow]

BUCKET = "tandem"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def object_store(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """An S3 with one bucket; its address."""
    moto, port = needed("moto_server", str(Path(sys.executable).parent)), free_port()
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    address = f"http://127.0.0.1:{port}"
    with process([moto, "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log", address, env):
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET)
        yield address


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of an MLflow server, to which everything in this module goes."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    env = {**os.environ, **KEYS, "MLFLOW_DISABLE_TELEMETRY": "true", "NO_PROXY": "127.0.0.1"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # as in the image
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        env["MLFLOW_S3_ENDPOINT_URL"] = stack.enter_context(object_store(folder, env))
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        stores = [
            "--backend-store-uri",
            database,
            "--artifacts-destination",
            f"s3://{BUCKET}/runs",
            "--serve-artifacts",
        ]
        stack.enter_context(process([*command, *stores], folder / "mlflow.log", f"{address}/health", env))
        stack.enter_context(own_registry(folder / "home"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("MLFLOW_TRACKING_URI", address)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield address


def test_a_champion_comes_back_as_it_was_registered(server, tmp_path):
    dataset = new_dataset()
    promote(dataset, add_version(dataset, "a", "first weights"), None)
    promote(dataset, add_version(dataset, "b", "second weights"), "1")
    with client.champion_of(dataset) as bundle:
        assert (bundle / "model.onnx").read_text() == "second weights"
    client.rollback(dataset)
    found = client.champion_bundle(dataset, tmp_path / "champion")
    assert (found / "model.onnx").read_text() == "first weights"
    assert pointed(dataset) == ("1", None)
    assert said(dataset) == [("promoted", "1"), ("promoted", "2"), ("rolled back", "1")]


def test_the_same_run_twice_is_one_version(server):
    dataset = new_dataset()
    assert add_version(dataset, "a") == add_version(dataset, "a") == "1"


def test_a_run_has_its_figures_and_a_child_for_each_step(server):
    mlflow, name = connect(), client.model_name(new_dataset())
    run = tracking.parent_run(mlflow, name, "a", {"tandem.arm": "ctrl"})
    figures = {"ctrl": {"auc": 0.7, "slices": {"age=25 to 34": {"auc": None, "rows": 3}}}}
    tracking.log_figures(mlflow, run, {"gate": {"min_auc": 0.55}}, figures)
    steps = [tracking.StepRun(StepRecord("align", 1000.0, 2.0, 1), {"loss": [0.5, 0.4]})]
    tracking.log_steps(mlflow, run, steps)
    tracking.log_steps(mlflow, run, steps)
    tracking.finish(mlflow, run)
    data = mlflow.get_run(run.info.run_id).data
    assert data.metrics == {"ctrl.auc": 0.7, "ctrl.slices.age_25 to 34.rows": 3.0}
    assert data.params == {"gate.min_auc": "0.55"}
    children = mlflow.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert [child.info.run_name for child in children] == ["align"]
    assert children[0].data.metrics == {"seconds": 2.0, "gpu_seconds": 2.0, "loss": 0.4}


def test_of_two_processes_one_wins(server, tmp_path):
    datasets = [new_dataset() for _ in range(4)]
    for dataset in datasets:
        promote(dataset, add_version(dataset, "first"), None)
    command = [sys.executable, "-c", CHALLENGER]
    started = [
        subprocess.Popen([*command, run_id, tmp_path, *datasets], stdout=subprocess.PIPE, text=True)
        for run_id in ("left", "right")
    ]
    told = [process.communicate(timeout=200)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    for dataset, *lines in zip(datasets, *told, strict=True):
        (kept, _, seen), (promoted, winner) = sorted(line.split() for line in lines)
        assert (kept, promoted, seen) == ("kept", "promoted", winner)
        assert pointed(dataset) == (winner, "1")
        assert said(dataset) == [("promoted", "1"), ("promoted", winner)]
