"""The pipeline that keeps online features young between trainings: validate the sources, materialise what changed."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.validate.settings import ValidateSettings
from pipelines import steps
from pipelines.policy import on_cpu


class Result(NamedTuple):
    """The outputs of the materialise pipeline."""

    report: dsl.Artifact
    age: dsl.Metrics
    data_docs: dsl.HTML


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
