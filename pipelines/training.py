"""The training pipeline: what runs, in what order. The same pipeline runs on a laptop and on Kubeflow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.dataset.errors import UserError
from components.training.settings import ProcessSettings
from pipelines import steps
from pipelines.policy import on_cpu, on_gpu, on_nodes
from pipelines.settings import ALIGNED, COLLABORATIVE, FLIP, ID, PRETRAINED, SRP4CTR, RunSettings

#: Says of a task what it runs on.
Placed = Callable[[dsl.PipelineTask], dsl.PipelineTask]


class Result(NamedTuple):
    """The outputs of the training pipeline."""

    verdict: str
    reasons: list
    model_version: str
    evaluation: dsl.Artifact
    report: dsl.HTML
    gate_card: dsl.Markdown
    data_docs: dsl.HTML


@dataclass(frozen=True)
class _Rows:
    """What the trainings share: the retrieve step's outputs, and the model's architecture."""

    training_set: Any
    champion: Any
    architecture: Mapping[str, Any]


def training_pipeline(settings: RunSettings) -> BaseComponent:
    """The training pipeline of one method; every other setting is a pipeline parameter with a default.

    Raises:
        UserError: a method without encoded texts is asked to learn from them, one without a sequence encoder is to
            leave it frozen, or the candidate could not be served.
    """
    method = settings.method
    if method not in ALIGNED and settings.reads_texts:
        raise UserError(
            "finetune.map_rows, finetune.auxiliary.weight and model.text_rows need encoded texts; write --method ctrl"
        )
    if settings.finetune.frozen and (method == COLLABORATIVE or settings.backbone != SRP4CTR):
        raise UserError(
            f"finetune.frozen: method {method} with backbone {settings.backbone} has no pre-trained sequence encoder; "
            "write --method srp4ctr, or remove it"
        )
    if ID not in settings.strategies:
        raise UserError(
            "strategies: plm and both score with the PLM, which is never served, and are only reported; "
            "the collaborative half alone can be registered: leave id among them"
        )
    default: dict[str, Any] = settings.parameters()

    @dsl.pipeline(name=f"tandem-training-{method}", description=f"Train, gate and deploy with method {method}.")
    def pipeline(
        dataset: str = default["dataset"],
        run_id: str = default["run_id"],
        backbone: str = default["backbone"],
        seed: int = default["seed"],
        shards: int = default["shards"],
        window: str = default["window"],
        warm_start: bool = default["warm_start"],
        model: dict = default["model"],
        validate: dict = default["validate"],
        prompt: dict = default["prompt"],
        encode: dict = default["encode"],
        align: dict = default["align"],
        pretrain: dict = default["pretrain"],
        reconstruct: dict = default["reconstruct"],
        finetune: dict = default["finetune"],
        evaluate: dict = default["evaluate"],
        gate: dict = default["gate"],
    ) -> Result:
        validated = on_cpu(steps.validate(dataset=dataset, settings=validate)).outputs
        tables = validated["validated"]
        retrieved = steps.retrieve(dataset=dataset, validated=tables, window=window, warm_start=warm_start)
        found = on_cpu(retrieved, memory="16Gi").outputs
        architecture = {"backbone": backbone, "model": model, "seed": seed}
        rows = _Rows(found["training_set"], found["champion"], architecture)

        learnt: dict[str, Any] = {}
        begin: dict[str, Any] = {}
        texts: dict[str, Any] = {}
        if method in PRETRAINED:
            begin = _pretrained(rows, pretrain)
        if method == FLIP:
            learnt = begin = _reconstructed(rows, shards, _machines(settings.reconstruct), prompt, reconstruct)
        if method in ALIGNED:
            on_align = _machines(settings.align)
            learnt, begin, texts = _aligned(rows, begin, shards, on_align, prompt=prompt, encode=encode, align=align)
        on_training = _machines(settings.finetune)
        arms = _trained(rows, method, on_training, finetune, begin)
        reported = _reported(rows, settings, on_training, finetune, learnt)
        if settings.finetune.map_rows:
            # To score the newcomers with rows of theirs; no other evaluation is to fetch the embeddings.
            reported |= texts

        evaluating = steps.evaluate(
            dataset=dataset, training_set=rows.training_set, arm=method, settings=evaluate, **arms, **reported
        )
        evaluated = on_cpu(evaluating, memory="32Gi" if settings.finetune.map_rows else "16Gi").outputs["evaluation"]
        registering = steps.register(
            dataset=dataset,
            run_id=run_id,
            method=method,
            settings=gate,
            validated=tables,
            data_docs=validated["data_docs"],
            training_set=rows.training_set,
            evaluation=evaluated,
            backbone=backbone,
            seed=seed,
            **arms,
            **learnt,
        )
        registered = on_cpu(registering).outputs
        verdict = registered["verdict"]
        on_cpu(steps.deploy(dataset=dataset, validated=tables, bundle=registered["bundle"], verdict=verdict))

        said = {name: registered[name] for name in ("reasons", "model_version", "report", "gate_card")}
        return Result(verdict=verdict, evaluation=evaluated, data_docs=validated["data_docs"], **said)

    return pipeline


def _machines(settings: ProcessSettings) -> Placed:
    """What a training runs on: one GPU node, or a TrainJob's machines beside the task."""
    return on_nodes if settings.nodes > 1 else on_gpu


def _pretrained(rows: _Rows, settings: Any) -> dict[str, Any]:
    """Pre-train the sequence encoder; what the candidate's training begins with."""
    task = on_gpu(steps.pretrain(training_set=rows.training_set, settings=settings, **rows.architecture))
    return {"checkpoint": task.outputs["checkpoint"]}


def _aligned(
    rows: _Rows, begin: Mapping[str, Any], shards: Any, on_align: Placed, prompt: Any, encode: Any, align: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Say the rows in words, encode them shard by shard, and align. The PLM is met here, and left here.

    Returns:
        What is registered, what training begins with, and the texts with their embeddings.
    """
    prompts = on_cpu(steps.prompt_transform(training_set=rows.training_set, settings=prompt, shards=shards))
    texts = prompts.outputs["prompts"]
    with dsl.ParallelFor(prompts.outputs["Output"], name="shards", parallelism=100) as shard:
        encoded = on_gpu(steps.encode(prompts=texts, settings=encode, shard=shard, shards=shards))
    # One for each consumer: the compiler changes the object that it is handed.
    shared, own, told = (dsl.Collected(encoded.outputs["embeddings"]) for _ in range(3))
    common = {"training_set": rows.training_set, "champion": rows.champion, "prompts": texts}
    pretrained = {"pretrained": begin["checkpoint"]} if begin else {}
    aligned = on_align(steps.align(embeddings=shared, settings=align, **common, **pretrained, **rows.architecture))
    learnt = {"prompts": texts, "checkpoint": aligned.outputs["checkpoint"]}
    return learnt, {**learnt, "embeddings": own}, {"prompts": texts, "embeddings": told}


def _reconstructed(rows: _Rows, shards: Any, on_training: Placed, prompt: Any, settings: Any) -> dict[str, Any]:
    """Say the rows in words, and pre-train both models on them; what is registered, and what training begins with."""
    prompts = on_cpu(steps.prompt_transform(training_set=rows.training_set, settings=prompt, shards=shards))
    texts = prompts.outputs["prompts"]
    common = {"training_set": rows.training_set, "champion": rows.champion, "prompts": texts}
    told = steps.reconstruct(settings=settings, **common, **rows.architecture)
    return {"prompts": texts, "checkpoint": on_training(told).outputs["checkpoint"]}


def _reported(
    rows: _Rows, settings: RunSettings, on_training: Placed, finetune: Any, learnt: Mapping[str, Any]
) -> dict[str, Any]:
    """Train the arms that score with the PLM, which are evaluated and never registered; what evaluation reads."""
    found: dict[str, Any] = {}
    common = {"training_set": rows.training_set, "settings": finetune, **learnt, **rows.architecture}
    for strategy in (one for one in settings.strategies if one != ID):
        name = f"{settings.method}_{strategy}"
        task = on_training(steps.finetune(arm=name, strategy=strategy, **common))
        found |= {strategy: task.set_display_name(f"finetune-{name}").outputs["trained"], "prompts": learnt["prompts"]}
    return found


def _trained(rows: _Rows, method: str, on_training: Placed, settings: Any, begin: Mapping[str, Any]) -> dict[str, Any]:
    """Train the arm that has met no PLM, and beside it the candidate where that is another one; the arms' models."""
    common = {"training_set": rows.training_set, "settings": settings, **rows.architecture}
    baseline = on_training(steps.finetune(arm=COLLABORATIVE, champion=rows.champion, **common))
    arms = {"collaborative": baseline.set_display_name("finetune-collaborative").outputs["trained"]}
    if method != COLLABORATIVE:
        candidate = on_training(steps.finetune(arm=method, **begin, **common))
        arms["aligned"] = candidate.set_display_name(f"finetune-{method}").outputs["trained"]
    return arms
