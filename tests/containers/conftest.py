"""The images at work: real servers as processes, the pipeline's steps and the service as containers of ours.

`make test-containers` builds the images and runs these tests; a test is skipped where there is no engine or no image.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.pipelines.shop import ROOT
from tests.services.servers import free_port, postgres, redis

TAG = os.environ.get("TAG") or "0.1.0"
TRAIN, SERVE, FOLLOW, PUSH, MLFLOW = (
    f"tandem-{name}:{TAG}" for name in ("train-python", "serve", "follow", "push", "mlflow")
)
IMAGES = (TRAIN, SERVE, FOLLOW, PUSH, MLFLOW)
USER = "10001:10001"
#: Users of MLflow, and the password of all of them.
ADMIN, PIPELINE, READER = "admin", "pipeline", "reader"
PASSWORD = secrets.token_urlsafe(24)
#: Where the volume that the steps share lies in a container.
STATE = "/var/lib/tandem"
#: What a restricted pod of a cluster may do: nothing but write to these.
RESTRICTED: dict[str, Any] = {
    "user": USER,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "", "/home/tandem": "uid=10001,gid=10001"},
    "network_mode": "host",
}
#: A small pipeline; nothing of the chain is left out.
QUICK = (
    "model.hidden=[32]",
    "align.batch_size=256",
    "finetune.epochs=1",
    "finetune.threads=2",
    "evaluate.resamples=50",
    "evaluate.degradation_rows=200",
    "gate.min_auc=0.4",
    "gate.max_logloss=2",
    "gate.calibration=[0.1, 10]",
    "gate.slice_floors={}",
)


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine, which holds the images."""
    docker = pytest.importorskip("docker", reason="the Docker client for Python is not installed")
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine: {error}")
    for name in IMAGES:
        try:
            client.images.get(name)
        except docker.errors.ImageNotFound:
            pytest.skip(f"no image {name}; 'make images' builds it")
    yield client
    client.close()


def run_once(engine: Any, image: str, *command: str, **options: Any) -> str:
    """What a command prints to stdout in a restricted container of its own.

    Raises:
        ContainerError: the command failed.
    """
    return engine.containers.run(image, list(command), remove=True, **{**RESTRICTED, **options}).decode()


@contextmanager
def running(engine: Any, image: str, command: list[str] | None = None, **options: Any) -> Iterator[Any]:
    """A restricted container that runs until the end of the block; what it said is shown if the block fails."""
    container = engine.containers.run(image, command, detach=True, **{**RESTRICTED, **options})
    try:
        yield container
    except BaseException:
        print(container.logs(tail=200).decode())
        raise
    finally:
        container.remove(force=True)


def wait_until_answered(address: str, container: Any, seconds: float = 240) -> None:
    """Wait for a server in a container."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        container.reload()
        assert container.status == "running", f"{container.image.tags} stopped"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} did not answer within {seconds:g} s")


@dataclass(frozen=True)
class Cluster:
    """What a cluster gives the steps: servers, and a volume that all of them mount."""

    folder: Path
    state: Path
    socket: str
    environment: dict[str, str]

    def mounts(self, read_only: bool = False) -> list[Any]:
        """The shared volume, and the folder of PostgreSQL's socket."""
        from docker.types import Mount

        return [
            Mount(STATE, str(self.state), type="bind", read_only=read_only),
            Mount(self.socket, self.socket, type="bind"),
        ]


@pytest.fixture(scope="session")
def cluster(engine, tmp_path_factory) -> Iterator[Cluster]:
    """Redis, PostgreSQL and an MLflow server (our own image) that knows two users: one of them only reads."""
    folder = tmp_path_factory.mktemp("cluster")
    state = folder / "state"
    state.mkdir()
    state.chmod(0o777)  # the containers' user is not the one of the tests
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        (socket,) = parse_qs(urlsplit(database).query)["host"]
        Path(socket).chmod(0o755)
        store = stack.enter_context(redis(folder / "redis"))
        tracking = stack.enter_context(mlflow_server(engine))
        for user in (PIPELINE, READER):
            post(f"{tracking}/api/2.0/mlflow/users/create", {"username": user, "password": PASSWORD}, ADMIN)
        environment = {
            "MLFLOW_TRACKING_URI": tracking,
            "MLFLOW_TRACKING_USERNAME": PIPELINE,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "TANDEM_DATA": f"{STATE}/data",
            "TANDEM_FEAST": "team",
            "TANDEM_FEAST_REDIS": store,
            "TANDEM_FEAST_REGISTRY": database,
            "TANDEM_HOME": STATE,
            "TANDEM_RUN_ID": "first",
            "OMP_NUM_THREADS": "2",
            "NO_PROXY": "127.0.0.1",
        }
        yield Cluster(folder, state, socket, environment)


@contextmanager
def mlflow_server(engine: Any) -> Iterator[str]:
    """The address of an MLflow server with users, which keeps everything in its container's memory."""
    port = free_port()
    stores = ["--backend-store-uri", "sqlite:////home/tandem/mlflow.db", "--artifacts-destination", "/home/tandem/runs"]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--serve-artifacts"]
    environment = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD}
    options = {"environment": environment, "working_dir": "/home/tandem"}  # where the users' database goes
    with running(engine, MLFLOW, [*command, "--app-name", "basic-auth", *stores], **options) as container:
        wait_until_answered(f"http://127.0.0.1:{port}/health", container)
        yield f"http://127.0.0.1:{port}"


def post(address: str, body: dict[str, Any], user: str | None = None) -> dict[str, Any]:
    """The answer to a JSON body, asked as a user of PASSWORD if one is named."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"content-type": "application/json"})
    if user is not None:
        words = base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()
        request.add_header("authorization", f"Basic {words}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


#: Compiles the training pipeline into a file, without the exit handler: that asks a cluster how the run ended.
COMPILE = """import sys
from kfp import compiler
from pipelines.cluster import steps_of
from pipelines.settings import parse_settings
compiler.Compiler().compile(steps_of("training", parse_settings({}, sys.argv[2:])), sys.argv[1])
"""


@dataclass(frozen=True)
class Trained:
    """A finished run of the compiled pipeline: its outputs."""

    outputs: dict[str, Any]


@pytest.fixture(scope="session")
def trained(engine, cluster) -> Trained:
    """The compiled pipeline, run on the sample in the train image by kfp's own runner, step by step."""
    from kfp import components, local

    run_once(
        engine,
        TRAIN,
        "python",
        "-m",
        "pipelines.cli",
        "data",
        "sample",
        environment=cluster.environment,
        mounts=cluster.mounts(),
    )
    compiled = cluster.folder / "pipeline.yaml"
    # In a process of its own: the image is read when the components are defined.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TANDEM_TRAIN_IMAGE": TRAIN}
    subprocess.run([sys.executable, "-c", COMPILE, str(compiled), *QUICK], env=environment, check=True)
    runner = local.DockerRunner(environment=cluster.environment, mounts=cluster.mounts(), **RESTRICTED)
    artifacts = cluster.folder / "artifacts"
    artifacts.mkdir()
    artifacts.chmod(0o777)
    local.init(runner=runner, pipeline_root=str(artifacts))
    return Trained(dict(components.load_component_from_file(str(compiled))().outputs))
