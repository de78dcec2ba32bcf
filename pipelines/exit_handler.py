"""What a cluster runs: a pipeline with an exit handler around all of it, which tells how the run ended.

A laptop runs the pipeline itself: a group with an exit handler hands on no outputs, and there is no Workflow to ask.

The loop over the shards lies in the group. With an exit task that takes a PipelineTaskFinalStatus that is reported to
fail on a backend of 2.14 (kubeflow/pipelines#12390), and on one of 2.16 to run, with the group's state left at
"running" (#13321). This task takes none, and does not read the group's state.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from pipelines import steps
from pipelines.policy import on_exit


def with_exit_handler(pipeline: BaseComponent) -> BaseComponent:
    """The pipeline with the same parameters and no outputs, whose end is told to the webhook however it comes."""
    tasks = dict(task_names(pipeline))
    body = pipeline.pipeline_func

    def around(*given: Any) -> None:
        told = on_exit(steps.notify(workflow=dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER, tasks=tasks))
        with dsl.ExitHandler(told, name=pipeline.name):
            body(*given)

    around.__signature__ = inspect.signature(body).replace(return_annotation=None)  # type: ignore[attr-defined]
    return dsl.pipeline(around, name=pipeline.name, description=pipeline.description)


def task_names(pipeline: BaseComponent) -> Iterator[tuple[str, str]]:
    """The step that each task of the pipeline is, by the task's name, which is unique where a step runs twice."""
    spec = pipeline.pipeline_spec
    for graph in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for name, task in graph.tasks.items():
            if spec.components[task.component_ref.name].executor_label:
                yield name, task.task_info.name
