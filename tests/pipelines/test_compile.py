"""The compiled pipelines: golden files, references that resolve, and the policy that a cluster will see.

After a change that is meant to change the compiled pipelines, write the golden files anew and read their diff:
`TANDEM_WRITE_GOLDEN=1 python -m pytest tests/pipelines/test_compile.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from kfp import compiler

from pipelines.materialize import materialize_pipeline
from pipelines.policy import CONFIG, CONFIG_MAP, GPU, SECRETS
from pipelines.settings import Method, parse_settings
from pipelines.training import training_pipeline

GOLDEN = Path(__file__).parent / "golden"
METHODS = get_args(Method)
PIPELINES = (*METHODS, "materialize")
ON_GPU = {"encode", "align", "pretrain", "finetune", "finetune-2"}


def compiled(name: str, folder: Path) -> str:
    path = folder / f"{name}.yaml"
    settings = parse_settings({"method": name} if name in METHODS else {}, [])
    made = training_pipeline(settings) if name in METHODS else materialize_pipeline("sample", settings.checks)
    compiler.Compiler().compile(made, str(path))
    return path.read_text()


@pytest.fixture(scope="module", params=PIPELINES)
def documents(request, tmp_path_factory):
    """The pipeline spec and the platform spec of one pipeline: of training with a method, or of materialising."""
    return tuple(yaml.safe_load_all(compiled(request.param, tmp_path_factory.mktemp("ir"))))


@pytest.mark.parametrize("name", PIPELINES)
def test_the_compiled_pipeline_is_the_golden_one(name, tmp_path):
    # As data: the compiler's comments name settings in whatever order, and its own version is no change of ours.
    content = list(yaml.safe_load_all(compiled(name, tmp_path)))
    del content[0]["sdkVersion"]
    found = yaml.safe_dump_all(content, width=120)
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("TANDEM_WRITE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text(), f"{golden.name} differs; see this module's docstring"


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(PIPELINES)


def graphs(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every graph of tasks in the IR by the component's name."""
    inner = {name: component["dag"] for name, component in spec["components"].items() if "dag" in component}
    return {"root": spec["root"]["dag"], **inner}


def test_every_reference_in_the_ir_resolves(documents):
    spec = documents[0]
    executors = spec["deploymentSpec"]["executors"]
    labels = {part["executorLabel"] for part in spec["components"].values() if "executorLabel" in part}
    assert labels == set(executors)
    used = set()
    for graph_name, graph in graphs(spec).items():
        declared = spec["root"] if graph_name == "root" else spec["components"][graph_name]
        outer = {kind: set(declared.get("inputDefinitions", {}).get(kind, {})) for kind in ("parameters", "artifacts")}
        tasks = graph["tasks"]
        for name, task in tasks.items():
            component = task["componentRef"]["name"]
            used.add(component)
            for needed in task.get("dependentTasks", []):
                assert needed in tasks, f"{name} waits for {needed}, which is not there"
            takes = spec["components"][component].get("inputDefinitions", {})
            for kind in ("parameters", "artifacts"):
                given = task.get("inputs", {}).get(kind, {})
                known = takes.get(kind, {})
                required = {key for key, definition in known.items() if not definition.get("isOptional")}
                iterated = task.get("parameterIterator", {}).get("itemInput")
                assert set(given) - {iterated} <= set(known) | {iterated}, f"{name} is given what it does not take"
                assert required <= set(given) | {iterated}, f"{name} lacks {required - set(given)}"
                for source in given.values():
                    _check_source(source, tasks, outer, spec, name)
    assert used == set(spec["components"]), "components that no task uses"


def _check_source(
    source: dict[str, Any], tasks: dict[str, Any], outer: dict[str, set[str]], spec: dict[str, Any], name: str
) -> None:
    for kind, singular in (("parameters", "Parameter"), ("artifacts", "Artifact")):
        produced = source.get(f"taskOutput{singular}")
        if produced:
            producer = tasks[produced["producerTask"]]
            gives = spec["components"][producer["componentRef"]["name"]]["outputDefinitions"][kind]
            assert produced[f"output{singular}Key"] in gives, f"{name} reads an output that nobody writes"
        key = source.get(f"componentInput{singular}")
        if key and not key.startswith("pipelinechannel--") and "-loop-item" not in key:
            assert key in outer[kind], f"{name} reads input {key}, which its graph does not have"


def executor_configs(documents) -> dict[str, dict[str, Any]]:
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): config for name, config in platform.items()}


def test_every_task_is_on_the_policy(documents):
    configs = executor_configs(documents)
    containers = {
        name.removeprefix("exec-"): executor["container"]
        for name, executor in documents[0]["deploymentSpec"]["executors"].items()
    }
    assert set(configs) == set(containers)
    for name, config in configs.items():
        secrets = {entry["secretName"]: entry for entry in config["secretAsEnv"]}
        assert set(secrets) == set(SECRETS), name
        for secret, keys in SECRETS.items():
            assert {pair["envVar"] for pair in secrets[secret]["keyToEnv"]} == set(keys)
            assert secrets[secret]["optional"], "a laptop cluster has none of them"
        (mapped,) = config["configMapAsEnv"]
        assert mapped["configMapName"] == CONFIG_MAP
        assert {pair["envVar"] for pair in mapped["keyToEnv"]} == set(CONFIG)
        assert config["securityContext"]["runAsNonRoot"] is True
        assert int(config["securityContext"]["runAsUser"]) > 0
        assert int(config["activeDeadlineSeconds"]) >= 3600
        resources = containers[name]["resources"]
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(resources), name


def test_gpu_tasks_and_only_they_ask_for_gpus(documents):
    configs = executor_configs(documents)
    for name, executor in documents[0]["deploymentSpec"]["executors"].items():
        step = name.removeprefix("exec-")
        wanted = executor["container"]["resources"].get("accelerator")
        config = configs[step]
        if step in ON_GPU:
            assert (wanted["resourceType"], wanted["resourceCount"]) == (GPU, "1")
            assert [entry["key"] for entry in config["tolerations"]] == [GPU]
            assert config["nodeSelector"]["labels"] == {"tandem.dev/accelerator": "gpu"}
        else:
            assert wanted is None, step
            assert "tolerations" not in config
            assert "nodeSelector" not in config


def test_every_task_is_tried_again_on_a_cluster(documents):
    for graph in graphs(documents[0]).values():
        for name, task in graph["tasks"].items():
            if "executorLabel" in documents[0]["components"][task["componentRef"]["name"]]:
                assert task["retryPolicy"]["maxRetryCount"] >= 2, name


def test_deploy_is_handed_nothing_of_the_language_model(documents):
    """Neither prompts nor embeddings nor the aligned checkpoint: the PLM ends where serving begins."""
    if "comp-deploy" not in documents[0]["components"]:
        pytest.skip("nothing is deployed")
    deploy = documents[0]["components"]["comp-deploy"]["inputDefinitions"]["artifacts"]
    assert set(deploy) == {"bundle", "validated"}
