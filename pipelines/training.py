"""The training pipeline: what runs, in what order. The same pipeline runs on a laptop and on Kubeflow."""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.dataset.errors import UserError
from pipelines import steps
from pipelines.policy import on_cpu, on_gpu
from pipelines.settings import COLLABORATIVE, PRETRAINED, SRP4CTR, RunSettings


class Result(NamedTuple):
    """The outputs of the training pipeline."""

    verdict: str
    reasons: list
    model_version: str
    evaluation: dsl.Artifact
    report: dsl.HTML
    gate_card: dsl.Markdown
    data_docs: dsl.HTML


def training_pipeline(settings: RunSettings) -> BaseComponent:
    """The training pipeline of one method; every other setting is a pipeline parameter with a default.

    Raises:
        UserError: the collaborative-only method is asked to learn from texts.
    """
    method = settings.method
    if method in {COLLABORATIVE, SRP4CTR} and settings.reads_texts:
        raise UserError(
            "finetune.map_rows, finetune.auxiliary.weight and model.text_rows need texts; write --method ctrl"
        )
    default: dict[str, Any] = settings.parameters()

    @dsl.pipeline(name=f"tandem-training-{method}", description=f"Train, gate and deploy with method {method}.")
    def pipeline(
        dataset: str = default["dataset"],
        run_id: str = default["run_id"],
        backbone: str = default["backbone"],
        seed: int = default["seed"],
        shards: int = default["shards"],
        model: dict = default["model"],
        validate: dict = default["validate"],
        prompt: dict = default["prompt"],
        encode: dict = default["encode"],
        align: dict = default["align"],
        pretrain: dict = default["pretrain"],
        finetune: dict = default["finetune"],
        evaluate: dict = default["evaluate"],
        gate: dict = default["gate"],
    ) -> Result:
        architecture = {"backbone": backbone, "model": model, "seed": seed}

        validated = on_cpu(steps.validate(dataset=dataset, settings=validate))
        tables = validated.outputs["validated"]
        rows = on_cpu(steps.retrieve(dataset=dataset, validated=tables), memory="16Gi").outputs["training_set"]

        baseline = steps.finetune(training_set=rows, arm=COLLABORATIVE, settings=finetune, **architecture)
        arms = {"collaborative": on_gpu(baseline).set_display_name("finetune-collaborative").outputs["trained"]}
        learnt: dict[str, Any] = {}
        begin: dict[str, Any] = {}
        start: dict[str, Any] = {}

        if method in PRETRAINED:
            pretrained = on_gpu(steps.pretrain(training_set=rows, settings=pretrain, **architecture))
            begin = {"pretrained": pretrained.outputs["checkpoint"]}
            start = {"checkpoint": pretrained.outputs["checkpoint"]}
        if method not in {COLLABORATIVE, SRP4CTR}:
            prompts = on_cpu(steps.prompt_transform(training_set=rows, settings=prompt, shards=shards))
            texts = prompts.outputs["prompts"]
            with dsl.ParallelFor(prompts.outputs["Output"], name="shards", parallelism=100) as shard:
                encoded = on_gpu(steps.encode(prompts=texts, settings=encode, shard=shard, shards=shards))
            # One for each consumer: the compiler changes the object that it is handed.
            shared, own = (dsl.Collected(encoded.outputs["embeddings"]) for _ in range(2))
            aligned = on_gpu(
                steps.align(
                    training_set=rows, prompts=texts, embeddings=shared, settings=align, **begin, **architecture
                )
            )
            learnt = {"prompts": texts, "checkpoint": aligned.outputs["checkpoint"]}
            start = {**learnt, "embeddings": own}

        if method != COLLABORATIVE:
            candidate = steps.finetune(training_set=rows, arm=method, settings=finetune, **start, **architecture)
            arms["aligned"] = on_gpu(candidate).set_display_name(f"finetune-{method}").outputs["trained"]

        evaluated = on_cpu(
            steps.evaluate(dataset=dataset, training_set=rows, arm=method, settings=evaluate, **arms), memory="16Gi"
        )
        registered = on_cpu(
            steps.register(
                dataset=dataset,
                run_id=run_id,
                method=method,
                backbone=backbone,
                seed=seed,
                settings=gate,
                validated=tables,
                data_docs=validated.outputs["data_docs"],
                training_set=rows,
                evaluation=evaluated.outputs["evaluation"],
                **arms,
                **learnt,
            )
        )
        bundle, verdict = registered.outputs["bundle"], registered.outputs["verdict"]
        on_cpu(steps.deploy(dataset=dataset, validated=tables, bundle=bundle, verdict=verdict))

        return Result(
            verdict=verdict,
            reasons=registered.outputs["reasons"],
            model_version=registered.outputs["model_version"],
            evaluation=evaluated.outputs["evaluation"],
            report=registered.outputs["report"],
            gate_card=registered.outputs["gate_card"],
            data_docs=validated.outputs["data_docs"],
        )

    return pipeline
