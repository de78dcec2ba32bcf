"""What the steps of earlier runs took, and so what those of the next one will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from components.registry.client import VERDICT_TAG, model_name
from components.registry.connection import connect, exists
from components.registry.tracking import DATASET_TAG, NAME_TAG, PARENT_TAG, find_experiment

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

#: Runs that an estimate rests on, the newest ones.
RUNS = 5
#: Steps whose time goes with the window's rows, and the one whose time goes with the texts that it has to encode; the
#: others read the whole log, or do the same each time.
BY_ROWS = ("retrieve", "prompt_transform", "align", "pretrain", "reconstruct", "finetune", "evaluate")
BY_TEXTS = "encode"


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and GPU-seconds."""

    seconds: float
    gpu_seconds: float


@dataclass(frozen=True)
class Spent:
    """What an earlier run had to do, and what each of its steps took; a step that ran in shards is summed up."""

    run_id: str
    rows: float
    texts: float
    steps: Mapping[str, Cost]

    def for_work(self, step: str, rows: int, texts: int) -> Cost:
        """What the step would take for other numbers of rows and of texts to encode."""
        factor = 1.0
        if step.startswith(BY_ROWS):
            factor = rows / self.rows
        elif step == BY_TEXTS:
            factor = texts / self.texts if self.texts else float(texts == 0)
        cost = self.steps[step]
        return Cost(cost.seconds * factor, cost.gpu_seconds * factor)


def earlier_runs(dataset: str, method: str, backbone: str) -> list[Spent]:
    """What the newest finished runs of a method and backbone spent.

    Args:
        dataset: Name of an embedded data set, or path or URI of a DatasetSpec.
        method: The candidate's arm.
        backbone: The collaborative model.
    """
    name = model_name(dataset)
    if not exists():
        return []
    client = connect()
    experiment = find_experiment(client, name)
    if experiment is None:
        return []
    tags = {DATASET_TAG: name.removeprefix("tandem-"), "tandem.arm": method, "tandem.backbone": backbone}
    asked = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
    runs = client.search_runs([experiment], f"{asked} and tags.`{VERDICT_TAG}` != ''", order_by=["start_time DESC"])
    return [_spent(client, experiment, run) for run in runs if run.data.metrics.get("rows.train")][:RUNS]


def estimate(runs: list[Spent], rows: int, texts: int) -> dict[str, Cost]:
    """The median over earlier runs of what each step would take, in the order of the newest run's steps."""
    found = {}
    for step in runs[0].steps if runs else ():
        costs = [run.for_work(step, rows, texts) for run in runs if step in run.steps]
        if step == BY_TEXTS and texts:
            # Who encoded nothing cannot say what a text takes.
            costs = [cost for run, cost in zip(runs, costs, strict=False) if run.texts] or costs
        found[step] = Cost(median(cost.seconds for cost in costs), median(cost.gpu_seconds for cost in costs))
    return found


def _spent(client: MlflowClient, experiment: str, run: Run) -> Spent:
    asked = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    steps: dict[str, Cost] = {}
    for child in client.search_runs([experiment], asked, order_by=["start_time ASC"]):
        # 'encode 2' is the second shard.
        name, took = str(child.data.tags.get(NAME_TAG)).split(" ")[0], child.data.metrics
        before = steps.get(name, Cost(0.0, 0.0))
        steps[name] = Cost(before.seconds + took.get("seconds", 0.0), before.gpu_seconds + took.get("gpu_seconds", 0.0))
    metrics: dict[str, Any] = run.data.metrics
    rows = sum(value for key, value in metrics.items() if key.startswith("rows."))
    return Spent(str(run.data.tags.get("tandem.run_id")), rows, metrics.get("encode.misses", 0.0), steps)
