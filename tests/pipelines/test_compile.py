"""The compiled pipelines: golden files, references that resolve, and the policy that a cluster will see.

After a change that is meant to change the compiled pipelines, write the golden files anew and read their diff:
`TANDEM_WRITE_GOLDEN=1 python -m pytest tests/pipelines/test_compile.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from kfp import compiler, dsl

from components.dataset.errors import UserError
from pipelines.cluster import pipeline_of, steps_of
from pipelines.exit_handler import task_names
from pipelines.policy import (
    CONFIG,
    CONFIG_MAP,
    CPU_PATIENCE,
    EXIT_PATIENCE,
    EXIT_SECRETS,
    GPU,
    GPU_PATIENCE,
    SCRATCH,
    SECRETS,
    STATE_CLAIM,
    STATE_PATH,
    USER,
    Patience,
    check_pinned,
)
from pipelines.settings import Method, parse_settings
from pipelines.training import training_pipeline

GOLDEN = Path(__file__).parent / "golden"
METHODS = get_args(Method)
PIPELINES = (*METHODS, "materialize", "materialize+rows")
KINDS = ("parameters", "artifacts")
OUTPUTS = "outputDefinitions"
#: The exit handler's task, and the group around which it is.
EXIT, GROUP = "notify", "comp-exit-handler-1"
ON_GPU = {"encode", "align", "pretrain", "reconstruct", "finetune", "finetune-2"}


@pytest.fixture(scope="module", params=PIPELINES)
def name(request):
    """One pipeline: of training with a method, or of materialising."""
    return request.param


@pytest.fixture(scope="module")
def documents(name, tmp_path_factory):
    """The pipeline spec and the platform spec of it."""
    path = tmp_path_factory.mktemp("ir") / f"{name}.yaml"
    settings = parse_settings({"method": name} if name in METHODS else {}, [])
    compiler.Compiler().compile(pipeline_of("training" if name in METHODS else name, settings), str(path))
    return tuple(yaml.load_all(path.read_text(), yaml.CSafeLoader))


def test_the_compiled_pipeline_is_the_golden_one(name, documents):
    # As data: the compiler's comments name settings in whatever order, and its own version is no change of ours.
    content = [{key: part for key, part in document.items() if key != "sdkVersion"} for document in documents]
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


def faults(spec: dict[str, Any]) -> list[str]:
    """Whatever in the IR points at something that is not there, and whatever nothing points at."""
    found, used = [], set()
    components = spec["components"]
    labels = {part["executorLabel"] for part in components.values() if "executorLabel" in part}
    executors = set(spec["deploymentSpec"]["executors"])
    found += [f"executor {name} is named on one side only" for name in sorted(labels ^ executors)]
    for graph_name, graph in graphs(spec).items():
        scope = Scope(spec, graph_name, graph["tasks"])
        for name, task in graph["tasks"].items():
            used.add(task["componentRef"]["name"])
            found += scope.faults_of(name, task)
        found += scope.faults_of_outputs(graph.get("outputs", {}))
    return found + [f"no task uses component {name}" for name in sorted(set(components) ^ used)]


@dataclass(frozen=True)
class Scope:
    """A graph of tasks: what a task in it can read."""

    spec: dict[str, Any]
    graph: str
    tasks: dict[str, Any]

    def declared(self, kind: str, of: str = "inputDefinitions") -> set[str]:
        component = self.spec["root"] if self.graph == "root" else self.spec["components"][self.graph]
        return set(component.get(of, {}).get(kind, {}))

    def faults_of(self, name: str, task: dict[str, Any]) -> list[str]:
        component = self.spec["components"].get(task["componentRef"]["name"])
        if component is None:
            return [f"{name} is of no component"]
        found = [f"{name} waits for {other}" for other in task.get("dependentTasks", []) if other not in self.tasks]
        loops = [task[loop] for loop in ("parameterIterator", "artifactIterator") if loop in task]
        for kind in ("parameters", "artifacts"):
            given = task.get("inputs", {}).get(kind, {})
            takes = component.get("inputDefinitions", {}).get(kind, {})
            needs = {key for key, definition in takes.items() if not definition.get("isOptional")}
            looped = {loop["itemInput"] for loop in loops if loop["itemInput"] in takes}
            # What is looped over is handed on item by item, under a name that the component takes.
            sources = {loop["items"]["inputParameter"] for loop in loops if "inputParameter" in loop.get("items", {})}
            found += [f"{name} is given {key}" for key in sorted(set(given) - set(takes) - sources)]
            found += [f"{name} lacks {key}" for key in sorted(needs - set(given) - looped)]
            for key, source in given.items():
                found += [f"{name}: {key} {fault}" for fault in self.faults_of_source(kind, source)]
        for loop in loops:
            over = loop.get("items", {}).get("inputParameter")
            if over is not None and over not in task.get("inputs", {}).get("parameters", {}):
                found.append(f"{name} loops over {over}")
            if not any(loop["itemInput"] in component.get("inputDefinitions", {}).get(kind, {}) for kind in KINDS):
                found.append(f"{name} gives its loop's item to nobody")
        return found

    def faults_of_source(self, kind: str, source: dict[str, Any]) -> list[str]:
        singular = kind.removesuffix("s").capitalize()
        produced = source.get(f"taskOutput{singular}")
        if produced is not None:
            return self.faults_of_output(kind, produced["producerTask"], produced[f"output{singular}Key"])
        key = source.get(f"componentInput{singular}")
        return [f"reads {key}, which the graph does not take"] if key and key not in self.declared(kind) else []

    def faults_of_output(self, kind: str, task: str, key: str) -> list[str]:
        if task not in self.tasks:
            return [f"is of task {task}, which is not there"]
        component = self.spec["components"].get(self.tasks[task]["componentRef"]["name"], {})
        gives = component.get("outputDefinitions", {}).get(kind, {})
        return [] if key in gives else [f"is output {key} of {task}, which it does not write"]

    def faults_of_outputs(self, outputs: dict[str, Any]) -> list[str]:
        """The graph's own outputs: declared, and written by a task in it."""
        found = []
        for kind in KINDS:
            found += [
                f"{self.graph} gives {name}" for name in set(outputs.get(kind, {})) - self.declared(kind, OUTPUTS)
            ]
        for name, output in outputs.get("artifacts", {}).items():
            for chosen in output["artifactSelectors"]:
                fault = self.faults_of_output("artifacts", chosen["producerSubtask"], chosen["outputArtifactKey"])
                found += [f"{self.graph}: {name} {text}" for text in fault]
        for name, output in outputs.get("parameters", {}).items():
            chosen = output["valueFromParameter"]
            fault = self.faults_of_output("parameters", chosen["producerSubtask"], chosen["outputParameterKey"])
            found += [f"{self.graph}: {name} {text}" for text in fault]
        return found


def test_every_reference_in_the_ir_resolves(documents):
    assert faults(documents[0]) == []


def looped(spec: dict[str, Any]) -> dict[str, Any]:
    """The task that is run once for each shard."""
    return next(task for task in steps(spec).values() if "parameterIterator" in task)


def steps(spec: dict[str, Any]) -> dict[str, Any]:
    """The tasks of the pipeline, which all are in the exit handler's group."""
    return spec["components"][GROUP]["dag"]["tasks"]


#: Damage to the IR of `ctrl`, each with a word of what is said of it.
DAMAGE: dict[str, tuple[Any, str]] = {
    "an executor": (lambda spec: spec["deploymentSpec"]["executors"].pop("exec-align"), "exec-align"),
    "a component": (lambda spec: spec["components"].pop("comp-align"), "align"),
    "a task": (lambda spec: steps(spec).pop("evaluate"), "evaluate"),
    "an output": (
        lambda spec: spec["components"]["comp-retrieve"]["outputDefinitions"]["artifacts"].pop("training_set"),
        "training_set",
    ),
    "an input": (lambda spec: steps(spec)["align"]["inputs"]["artifacts"].pop("prompts"), "prompts"),
    "a parameter": (lambda spec: spec["root"]["inputDefinitions"]["parameters"].pop("dataset"), "dataset"),
    "what is looped over": (
        lambda spec: looped(spec)["inputs"]["parameters"].pop(
            looped(spec)["parameterIterator"]["items"]["inputParameter"]
        ),
        "loops over",
    ),
    "the loop's item": (
        lambda spec: spec["components"][looped(spec)["componentRef"]["name"]]["inputDefinitions"]["parameters"].pop(
            looped(spec)["parameterIterator"]["itemInput"]
        ),
        "item",
    ),
    "the loop's output": (
        lambda spec: spec["components"][looped(spec)["componentRef"]["name"]]["outputDefinitions"]["artifacts"].clear(),
        "align",
    ),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_reference_to_nothing_is_noticed(part):
    spec = next(yaml.safe_load_all((GOLDEN / "ctrl.yaml").read_text()))
    assert faults(spec) == []
    damage, word = DAMAGE[part]
    damage(spec)
    assert any(word in fault for fault in faults(spec)), faults(spec)


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
        wanted = EXIT_SECRETS if name == EXIT else SECRETS
        assert set(secrets) == set(wanted), name
        for secret, keys in wanted.items():
            assert {pair["envVar"] for pair in secrets[secret]["keyToEnv"]} == set(keys)
            assert secrets[secret]["optional"], "a laptop cluster has none of them"
        (mapped,) = config["configMapAsEnv"]
        assert mapped["configMapName"] == CONFIG_MAP
        assert {pair["envVar"] for pair in mapped["keyToEnv"]} == set(CONFIG)
        assert config["securityContext"] == {"runAsNonRoot": True, "runAsUser": str(USER), "runAsGroup": str(USER)}
        paths = {entry["name"]: entry["fieldPath"] for entry in config["fieldPathAsEnv"]}
        own = {"TANDEM_NAMESPACE": "metadata.namespace"} if name == EXIT else {}
        assert paths == {"TANDEM_RUN_ID": "metadata.labels['pipeline/runid']", **own}
        (state,) = config["pvcMount"]
        assert (state["constant"], state["mountPath"]) == (STATE_CLAIM, STATE_PATH)
        scratch = {mount["volumeName"]: mount["mountPath"] for mount in config["emptyDirMounts"]}
        assert scratch == SCRATCH, "a root file system that is read-only needs them"
        assert config["imagePullPolicy"] == "IfNotPresent"
        resources = containers[name]["resources"]
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(resources), name


def test_no_secret_is_written_into_a_pipeline(documents):
    """Every credential comes from a Kubernetes secret; the executors' own environment is empty."""
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert "env" not in executor["container"]


def test_nothing_is_installed_while_a_task_runs(documents):
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


@pytest.mark.parametrize("image", ["tandem-train:1", "tandem-train", "a/b@sha256:12", "a b@sha256:" + 64 * "0"])
def test_an_image_without_a_digest_is_refused(image):
    with pytest.raises(UserError, match="pinned"):
        check_pinned(image)


def test_an_image_with_a_digest_is_taken():
    check_pinned("registry.example:5000/team/tandem-train-python@sha256:" + 64 * "a")


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


def patience_of(step: str) -> Patience:
    return EXIT_PATIENCE if step == EXIT else GPU_PATIENCE if step in ON_GPU else CPU_PATIENCE


def test_every_task_is_tried_again_and_given_up_as_the_policy_says(documents):
    configs = executor_configs(documents)
    for graph in graphs(documents[0]).values():
        for name, task in graph["tasks"].items():
            if "executorLabel" not in documents[0]["components"][task["componentRef"]["name"]]:
                assert "retryPolicy" not in task, f"{name}: a graph's retries would multiply those of its tasks"
                continue
            granted = patience_of(name)
            assert task["retryPolicy"] == {
                "maxRetryCount": granted.retries,
                "backoffDuration": f"{granted.first}s",
                "backoffFactor": 2.0,
                "backoffMaxDuration": f"{granted.longest}s",
            }, name
            assert int(configs[name]["activeDeadlineSeconds"]) == granted.limit, name


def test_a_pre_empted_node_is_waited_for_longer_than_a_lost_one():
    """And a webhook least of all: the run's pods are there until its exit handler has ended."""
    waits = [
        sum(min(granted.first * 2**number, granted.longest) for number in range(granted.retries))
        for granted in (GPU_PATIENCE, CPU_PATIENCE, EXIT_PATIENCE)
    ]
    assert waits[0] >= 1800 > waits[1] >= waits[2]
    assert GPU_PATIENCE.limit > CPU_PATIENCE.limit >= 3600 > EXIT_PATIENCE.limit


def test_the_end_of_the_whole_pipeline_is_told(name, documents):
    """The exit handler is around every step, runs whatever became of them, and is handed their names."""
    spec = documents[0]
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {EXIT, GROUP.removeprefix("comp-")}
    assert tasks[EXIT]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert tasks[EXIT]["dependentTasks"] == [GROUP.removeprefix("comp-")]
    given = {key: value["runtimeValue"]["constant"] for key, value in tasks[EXIT]["inputs"]["parameters"].items()}
    assert given["workflow"] == dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER
    run = {
        task: content["taskInfo"]["name"]
        for graph in graphs(spec).values()
        for task, content in graph["tasks"].items()
        if "executorLabel" in spec["components"][content["componentRef"]["name"]] and task != EXIT
    }
    assert given["tasks"] == run
    kind = "training" if name in METHODS else name
    without = steps_of(kind, parse_settings({"method": name} if name in METHODS else {}, []))
    assert set(run) == set(dict(task_names(without)))


def test_deploy_is_handed_nothing_of_the_language_model(documents):
    """Neither prompts nor embeddings nor the aligned checkpoint: the PLM ends where serving begins."""
    if "comp-deploy" not in documents[0]["components"]:
        pytest.skip("nothing is deployed")
    deploy = documents[0]["components"]["comp-deploy"]["inputDefinitions"]["artifacts"]
    assert set(deploy) == {"bundle", "validated"}


def test_what_several_machines_train_asks_for_no_gpu_of_its_own(tmp_path):
    """The task only watches the TrainJob, whose machines have the GPUs and the image."""
    settings = parse_settings({"align": {"nodes": 2}}, [])
    compiler.Compiler().compile(training_pipeline(settings), str(tmp_path / "out.yaml"))
    executors = next(yaml.safe_load_all((tmp_path / "out.yaml").read_text()))["deploymentSpec"]["executors"]
    align, finetune = (executors[f"exec-{name}"]["container"] for name in ("align", "finetune"))
    assert "accelerator" not in align["resources"]
    assert align["env"] == [{"name": "TANDEM_TRAIN_IMAGE", "value": align["image"]}]
    assert finetune["resources"]["accelerator"]["resourceType"] == GPU


@pytest.mark.parametrize(
    ("changes", "fetched"),
    [([], set()), (["finetune.map_rows=[item]", "finetune.hidden_items=0.3"], {"prompts", "embeddings"})],
)
def test_only_who_makes_rows_of_texts_is_evaluated_with_them(tmp_path, changes, fetched):
    compiler.Compiler().compile(training_pipeline(parse_settings({}, changes)), str(tmp_path / "out.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "out.yaml").read_text()))
    assert faults(spec) == []
    tasks = spec["root"]["dag"]["tasks"]
    given, learnt = (tasks[name]["inputs"]["artifacts"] for name in ("evaluate", "finetune-2"))
    assert set(given) == {"training_set", "collaborative", "aligned", *fetched}
    assert all(given[name] == learnt[name] for name in fetched), "the very texts that the maps were learnt from"


def with_strategies(**more: Any) -> dict[str, Any]:
    return {"method": "flip", "strategies": ["id", "plm", "both"], **more}


def test_arms_that_score_with_the_plm_are_evaluated_and_not_registered(tmp_path):
    compiler.Compiler().compile(training_pipeline(parse_settings(with_strategies(), [])), str(tmp_path / "out.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "out.yaml").read_text()))
    assert faults(spec) == []
    tasks = spec["root"]["dag"]["tasks"]
    trained = {task["taskInfo"]["name"]: name for name, task in tasks.items() if "finetune" in name}
    assert set(trained) == {f"finetune-{arm}" for arm in ("collaborative", "flip", "flip_plm", "flip_both")}

    def read(name: str) -> set[str]:
        artifacts = tasks[name]["inputs"]["artifacts"].values()
        return {one["taskOutputArtifact"]["producerTask"] for one in artifacts if "taskOutputArtifact" in one}

    reported = {trained[f"finetune-flip_{strategy}"] for strategy in ("plm", "both")}
    assert set(trained.values()) <= read("evaluate")
    assert read("register") & set(trained.values()) == set(trained.values()) - reported
    for strategy in ("plm", "both"):
        arm = tasks[trained[f"finetune-flip_{strategy}"]]
        assert arm["inputs"]["parameters"]["strategy"]["runtimeValue"]["constant"] == strategy
        assert {"reconstruct", "prompt-transform"} <= read(trained[f"finetune-flip_{strategy}"])


def test_strategies_that_cannot_be_are_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"^settings of reconstruct: icl_weight, .* are all 0; leave one of them on$"):
        parse_settings({"reconstruct": dict.fromkeys(("icl_weight", "mlm_weight", "mtm_weight"), 0)}, [])
    with pytest.raises(UserError, match=r"never served.*leave id among them"):
        training_pipeline(parse_settings({"method": "flip", "strategies": ["plm", "both"]}, []))
    with pytest.raises(UserError, match="write --method flip"):
        parse_settings(with_strategies(method="ctrl"), [])
    with pytest.raises(UserError, match="names one twice"):
        parse_settings(with_strategies(strategies=["id", "plm", "plm"]), [])
    with pytest.raises(UserError, match=r"no hidden ids; leave finetune\.hidden_users"):
        parse_settings(with_strategies(), ["finetune.hidden_items=0.2"])


@pytest.mark.parametrize(
    "content",
    [{"method": "ctrl"}, {"method": "collaborative", "backbone": "srp4ctr"}, {"method": "flip", "backbone": "dcnv2"}],
)
def test_what_was_not_pre_trained_cannot_be_left_frozen(content):
    """Said before anything runs."""
    with pytest.raises(UserError, match=r"finetune\.frozen: method .* has no pre-trained sequence encoder"):
        training_pipeline(parse_settings(content, ["finetune.frozen=true"]))


@pytest.mark.parametrize(
    "content", [{"method": "srp4ctr"}, {"method": "srp4ctr+ctrl"}, {"method": "ctrl", "backbone": "srp4ctr"}]
)
def test_a_pre_trained_or_aligned_encoder_can_be_left_frozen(content):
    training_pipeline(parse_settings(content, ["finetune.frozen=true"]))


def test_kubeflow_takes_no_task_from_its_cache(documents):
    for graph in graphs(documents[0]).values():
        for name, task in graph["tasks"].items():
            if "executorLabel" in documents[0]["components"][task["componentRef"]["name"]]:
                assert not task.get("cachingOptions", {}).get("enableCache"), name
