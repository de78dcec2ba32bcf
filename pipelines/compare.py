"""Train several arms on the same rows and seeds, and say which is better, by how much and how surely."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from components.dataset.errors import UserError
from components.run import aside, home, write_json
from components.training.agent import end_with
from pipelines.arms import Arm, refuse_not_set
from pipelines.local import prepare
from pipelines.settings import RunSettings, validated
from pipelines.trials import Store, Task, make_embeddings, make_training_set, plan_trial, tasks_of

log = logging.getLogger("tandem.compare")

Part = Literal["valid", "test"]


@dataclass(frozen=True)
class Request:
    """A comparison: every arm on every backbone, or on the one that it brings, with every seed, all else alike.

    `common` holds the settings that all arms share; an arm's own lie over them. Epochs are chosen on the valid part
    in any case; `part` is where the arms are measured: valid while settings are searched for, test at the end.
    `hold_out_items` is the share of the items that the train part is robbed of, so that they are new.
    """

    dataset: str
    arms: tuple[Arm, ...]
    backbones: tuple[str, ...]
    seeds: tuple[int, ...]
    common: dict[str, Any]
    part: Part = "test"
    jobs: int = 0
    hold_out_items: float = 0.0

    def settings(self, arm: Arm, backbone: str, seed: int) -> RunSettings:
        """The settings of one trial."""
        return arm.over({**self.common, "dataset": self.dataset, "backbone": backbone, "seed": seed})


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, and the files that say it."""

    findings: dict[str, Any]
    markdown: str
    paths: dict[str, Path]

    def to_json(self) -> dict[str, Any]:
        """The findings and the paths as one JSON object; `arms` by name."""
        return {**self.findings, "paths": {name: str(path) for name, path in self.paths.items()}}


def compare(request: Request, tell: Callable[[str], None] = log.info) -> Comparison:
    """Carry out a comparison, or what is left of it, and write table, figures and plot.

    Args:
        request: What is compared.
        tell: Called with a line about each thing that is made.

    Raises:
        UserError: the input is wrong.
        ValidationStoppedError: validation stopped the data set.
        RuntimeError: a training failed; what was finished before is kept.
    """
    from pipelines.findings import Measured, draw, find, table

    _quiet()
    refuse_not_set(request.common)
    dataset = prepare(request.dataset)
    store = Store(home() / "comparisons")
    settings = validated({**request.common, "dataset": dataset})
    # All settings first: what is wrong with them shall not wait for the data.
    runs = [
        (arm.name, backbone, request.settings(arm, backbone, seed))
        for seed in request.seeds
        for backbone in request.backbones
        for arm in request.arms
    ]
    training_set = make_training_set(store, settings, request.hold_out_items)
    trials = [plan_trial(store, arm, backbone, run, training_set) for arm, backbone, run in runs]
    for trial in trials:
        make_embeddings(trial)
    tasks = {task.output: task for trial in trials for task in tasks_of(trial, request.part)}
    carry_out([task for output, task in tasks.items() if not output.exists()], request.jobs or _cores(), tell)
    measured = Measured.read(training_set, request.part, settings.evaluate)
    descriptions = {arm.name: arm.description for arm in request.arms}
    findings = {**find(measured, trials, descriptions), "hold_out_items": request.hold_out_items}
    output = store.place("reports", trials=sorted(trial.trained.name for trial in trials), part=request.part)
    return _written(output, findings, table(findings), draw(findings))


def _written(output: Path, findings: dict[str, Any], markdown: str, plot: str) -> Comparison:
    paths = {name: output / f"comparison.{ending}" for name, ending in (("table", "md"), ("json", "json"))}
    paths["plot"] = output / "comparison.svg"
    with aside(output) as draft:
        draft.mkdir(parents=True)
        write_json(draft / "comparison.json", findings)
        (draft / "comparison.md").write_text(markdown, encoding="utf-8")
        (draft / "comparison.svg").write_text(plot, encoding="utf-8")
    return Comparison(findings, markdown, paths)


def carry_out(tasks: Iterable[Task], jobs: int, tell: Callable[[str], None]) -> None:
    """Work tasks off in processes of one thread each: many small products scale by processes and not by threads.

    Raises:
        RuntimeError: a task failed. Those that ran beside it are finished first, those that wait are not begun.
    """
    waiting, running = list(tasks), dict[Future[None], tuple[Task, float]]()
    total, done = len(waiting), 0
    if not waiting:
        return
    with ProcessPoolExecutor(min(jobs, total), get_context("spawn"), _begin, (os.getpid(),)) as pool:
        while waiting or running:
            for task in _ready(waiting)[: jobs - len(running)]:
                waiting.remove(task)
                running[pool.submit(task.work)] = task, time.perf_counter()
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task, started = running.pop(future)
                _settle(task, future)
                done += 1
                tell(f"[{done}/{total}] {task.name}: {time.perf_counter() - started:.0f} s")


def _ready(tasks: Sequence[Task]) -> list[Task]:
    return [task for task in tasks if task.needs is None or task.needs.exists()]


def _settle(task: Task, future: Future[None]) -> None:
    try:
        future.result()
    except UserError as error:
        raise UserError(f"{task.name}: {error}") from None
    except BrokenProcessPool:
        raise RuntimeError(f"{task.name}: its process was killed, for want of memory perhaps; lower --jobs") from None
    except Exception as error:
        raise RuntimeError(f"{task.name}: {error}") from error


def _begin(parent: int) -> None:
    """A worker's beginning: one thread, and an end when the comparison does, which may be killed."""
    end_with(parent)
    import torch

    torch.set_num_threads(1)
    logging.getLogger("tandem").setLevel(logging.WARNING)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quiet() -> None:
    quiet = {"FEAST_USAGE": "False", "GX_ANALYTICS_ENABLED": "false", "TOKENIZERS_PARALLELISM": "false"}
    # Set before the workers start: a thread pool's size is read once, at import.
    os.environ.update(quiet, OMP_NUM_THREADS="1", HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"))
