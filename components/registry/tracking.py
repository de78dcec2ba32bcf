"""Runs in MLflow: one for each pipeline run, and under it one for each step."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.registry.client import RUN_ID_TAG
from components.registry.connection import artifact_location
from components.run import StepRecord

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"
DATASET_TAG = "tandem.dataset"
FAILED_STEP_TAG, FAILURE_TAG = "tandem.failed_step", "tandem.failure"
#: What MLflow takes in one call, and in the values of a parameter and of a tag.
METRICS_AT_ONCE, PARAMS_AT_ONCE, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 5000
#: MLflow takes a slash, but no name that is not a tidy path: 'a//b' is none.
UNFIT = re.compile(r"[^\w\-.: ]")
#: Of each part of a dotted name, such as a slice's, which holds a value of the data: MLflow takes 250 in all.
PART_LENGTH = 100


@dataclass(frozen=True)
class StepRun:
    """A step as MLflow shall show it: what it took, and its curves as lists of values by name, one an epoch."""

    record: StepRecord
    curves: Mapping[str, Sequence[float | None]]


def parent_run(client: MlflowClient, model: str, run_id: str, tags: Mapping[str, str]) -> Run:
    """The run of a pipeline run: the one injected by the backend (MLFLOW_RUN_ID), else the one of this run id.

    Args:
        client: MLflow.
        model: The registered model; an experiment of this name holds the runs, unless the environment names one.
        run_id: The pipeline run.
        tags: Set on the run, whoever made it.
    """
    injected = os.environ.get("MLFLOW_RUN_ID")
    said = {**tags, RUN_ID_TAG: run_id}
    if injected:
        for key, value in said.items():
            client.set_tag(injected, key, value)
        return client.get_run(injected)
    experiment = _experiment(client, model)
    known = client.search_runs([experiment], f"tags.`{RUN_ID_TAG}` = '{run_id}'", order_by=["start_time ASC"])
    for run in known:
        if PARENT_TAG not in run.data.tags:
            return run
    return client.create_run(experiment, tags=said, run_name=run_id)


def log_figures(client: MlflowClient, run: Run, params: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Log nested parameters and metrics under dotted names; what the run holds already is left alone.

    Numbers that are not finite, and values that are no numbers, are left out of the metrics.
    """
    from mlflow.entities import Metric, Param

    now, fresh = _now(), dict(_numbers(metrics))
    changed = [Metric(name, value, now, 0) for name, value in fresh.items() if run.data.metrics.get(name) != value]
    words = {name: value for name, value in _leaves(params) if name not in run.data.params}
    missing = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in words.items()]
    for start in range(0, len(changed), METRICS_AT_ONCE):
        client.log_batch(run.info.run_id, metrics=changed[start : start + METRICS_AT_ONCE])
    for start in range(0, len(missing), PARAMS_AT_ONCE):
        client.log_batch(run.info.run_id, params=missing[start : start + PARAMS_AT_ONCE])


def log_steps(client: MlflowClient, parent: Run, steps: Sequence[StepRun]) -> None:
    """Log a child run for each step, once by name."""
    there = client.search_runs([parent.info.experiment_id], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
    names = {run.data.tags.get(NAME_TAG) for run in there}
    for step in steps:
        if step.record.step not in names:
            _log_step(client, parent, step)


def finish(client: MlflowClient, run: Run) -> None:
    """Close a run, unless the backend that injected it is to do so."""
    if os.environ.get("MLFLOW_RUN_ID") != run.info.run_id:
        client.set_terminated(run.info.run_id)


def log_failure(client: MlflowClient, run: Run, step: str, message: str) -> None:
    """Say which step failed and why, and close the run as failed; one that is injected is left open."""
    client.set_tag(run.info.run_id, FAILED_STEP_TAG, step)
    client.set_tag(run.info.run_id, FAILURE_TAG, message[:TAG_LENGTH])
    if os.environ.get("MLFLOW_RUN_ID") != run.info.run_id:
        client.set_terminated(run.info.run_id, "FAILED")


def _log_step(client: MlflowClient, parent: Run, step: StepRun) -> None:
    from mlflow.entities import Metric

    record, tags = step.record, {PARENT_TAG: parent.info.run_id}
    begin = int(record.began * 1000)
    child = client.create_run(parent.info.experiment_id, begin, tags, run_name=record.step)
    spent = {"seconds": record.seconds, "gpu_seconds": record.gpu_seconds}
    points = [Metric(name, value, begin, 0) for name, value in spent.items()]
    for name, values in step.curves.items():
        drawn = [(epoch, value) for epoch, value in enumerate(values, start=1) if value is not None]
        points += [Metric(_fit(name), value, begin, epoch) for epoch, value in drawn if math.isfinite(value)]
    for start in range(0, len(points), METRICS_AT_ONCE):
        client.log_batch(child.info.run_id, metrics=points[start : start + METRICS_AT_ONCE])
    client.set_terminated(child.info.run_id, end_time=begin + int(record.seconds * 1000))


def find_experiment(client: MlflowClient, model: str) -> str | None:
    """Id of the experiment that the environment names, else of the model's own; None if it is not there."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given:
        return given
    found = client.get_experiment_by_name(_experiment_name(model))
    return None if found is None else str(found.experiment_id)


def _experiment(client: MlflowClient, model: str) -> str:
    """The experiment that `find_experiment` finds, made if it is not there."""
    from mlflow.exceptions import MlflowException

    found = find_experiment(client, model)
    if found is not None:
        return found
    name = _experiment_name(model)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_location(name)))
    except MlflowException:
        # Another run may have made it at the same moment.
        found = find_experiment(client, model)
        if found is None:
            raise
        return found


def _experiment_name(model: str) -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or model


def _numbers(content: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in _leaves(content):
        if _is_number(value):
            yield name, float(value)


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = prefix + _fit(str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, name + ".")
        else:
            yield name, value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fit(name: str) -> str:
    """The part of a name with what MLflow takes in none replaced, and no longer than it takes."""
    return UNFIT.sub("_", name)[:PART_LENGTH]


def _now() -> int:
    return int(time.time() * 1000)
