"""The pipeline that keeps online features young between trainings: validate the sources, materialise what changed.

Asked for, it also gives users and items that came after training their rows in the champion.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.encode.settings import EncodeSettings
from components.validate.settings import ValidateSettings
from pipelines import steps
from pipelines.policy import on_cpu, on_gpu


class Result(NamedTuple):
    """The outputs of the materialise pipeline."""

    report: dsl.Artifact
    age: dsl.Metrics
    data_docs: dsl.HTML


class WithRows(NamedTuple):
    """The outputs of the materialise pipeline that adds rows; `found` tells of the newcomers."""

    report: dsl.Artifact
    age: dsl.Metrics
    data_docs: dsl.HTML
    found: dsl.Artifact


def materialize_pipeline(dataset: str, checks: ValidateSettings) -> BaseComponent:
    """The pipeline with these defaults of its parameters `dataset` and `validate`."""
    settings = checks.model_dump(mode="json", exclude_none=True)
    named = dataset

    @dsl.pipeline(name="tandem-materialize", description="Bring the online features up to the sources.")
    def pipeline(dataset: str = named, end: str = "", full: bool = False, validate: dict = settings) -> Result:
        validated = on_cpu(steps.validate(dataset=dataset, settings=validate))
        tables = validated.outputs["validated"]
        done = on_cpu(steps.materialize(dataset=dataset, end=end, full=full, validated=tables), memory="16Gi")
        outputs = {name: done.outputs[name] for name in ("report", "age")}
        return Result(**outputs, data_docs=validated.outputs["data_docs"])

    return pipeline


def rows_pipeline(dataset: str, checks: ValidateSettings, encoding: EncodeSettings) -> BaseComponent:
    """The pipeline that also adds rows; of its parameter `encode` the PLM is always the champion's own."""
    settings = checks.model_dump(mode="json", exclude_none=True)
    encoded = encoding.model_dump(mode="json", exclude_none=True)
    named = dataset

    @dsl.pipeline(
        name="tandem-materialize-rows",
        description="Bring the online features up to the sources, and give new users and items rows in the champion.",
    )
    def pipeline(
        dataset: str = named, end: str = "", full: bool = False, validate: dict = settings, encode: dict = encoded
    ) -> WithRows:
        validated = on_cpu(steps.validate(dataset=dataset, settings=validate))
        tables = validated.outputs["validated"]
        done = on_cpu(steps.materialize(dataset=dataset, end=end, full=full, validated=tables), memory="16Gi")
        finding = on_cpu(steps.newcomers(dataset=dataset, end=end, encode=encode, validated=tables), memory="16Gi")
        # A row is of use once the store has the features that are scored with it.
        found = finding.after(done).outputs
        # By this name alone kfp's local runner finds what a condition asks for; by any other it is taken for false.
        with dsl.If(found["Output"] > 0, name="new"):
            texts = steps.encode(prompts=found["prompts"], settings=found["encode"], shard=0, shards=1)
            embeddings = on_gpu(texts).outputs["embeddings"]
            adding = steps.add_rows(dataset=dataset, newcomers=found["found"], embeddings=embeddings)
            on_cpu(adding, memory="16Gi")
        outputs = {name: done.outputs[name] for name in ("report", "age")}
        return WithRows(**outputs, data_docs=validated.outputs["data_docs"], found=found["found"])

    return pipeline
