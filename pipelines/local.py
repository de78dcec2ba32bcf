"""Run the pipelines on this process's machine, on embedded parts, and gather what came out."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.dataset.catalog import load_spec
from components.dataset.errors import UserError, ValidationStoppedError
from components.notify.report import LOST, Failure, report, said
from components.run import home, read_json
from pipelines.settings import RunSettings

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

log = logging.getLogger("tandem.run")


@dataclass(frozen=True)
class RunResult:
    """What a finished run says of itself."""

    run_id: str
    dataset: str
    metrics: dict[str, Any]
    verdict: str
    reasons: list[str]
    model_version: str | None
    paths: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The run as one JSON object; `arms` by name, each with its metrics on the test part."""
        return {
            "run_id": self.run_id,
            "dataset": self.dataset,
            "arms": self.metrics["arms"],
            "candidate": self.metrics.get("candidate"),
            "lift": self.metrics.get("lift"),
            "bayes_auc": self.metrics.get("bayes_auc"),
            "verdict": self.verdict,
            "reasons": self.reasons,
            "model_version": self.model_version,
            "paths": self.paths,
        }


def new_run_id() -> str:
    """A name for a run that sorts by time, such as 20260314-150926-5f3a."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def prepare(dataset: str) -> str:
    """Check before anything is started that the data set can be run; make the sample if it is the one asked for.

    Returns:
        The data set's name, or the absolute path of its DatasetSpec.

    Raises:
        UserError: there is no such data set, or a file or column of it is missing.
    """
    from components.dataset.sample import ensure
    from components.dataset.sources import check_sources
    from components.run import data_home

    spec = load_spec(dataset)
    if dataset == "sample":
        ensure(data_home() / "sample")
    check_sources(spec)
    return str(Path(dataset).resolve()) if Path(dataset).is_file() else dataset


def run_locally(settings: RunSettings, follow: bool = True) -> RunResult:
    """Run the pipeline step by step, each in a process of its own; state goes under `home()`.

    Args:
        settings: The run; an empty run_id is given a name.
        follow: Print the steps' log lines to stderr as they come.

    Raises:
        UserError: the input is wrong.
        ValidationStoppedError: a critical expectation failed.
        RuntimeError: a step failed; the message names it and the log.
    """
    dataset = prepare(settings.dataset)
    settings = settings.model_copy(update={"dataset": dataset, "run_id": settings.run_id or new_run_id()})
    folder = home() / "runs" / settings.run_id
    if folder.exists():
        raise UserError(
            f"--run-id {settings.run_id}: {folder} exists; choose another name, or none. A training that was killed "
            "there is found by its settings and data, and goes on under any name"
        )
    from pipelines.training import training_pipeline

    try:
        outputs = execute(training_pipeline(settings), settings.parameters(), folder, follow)
    except Exception as error:
        _record_failure(settings, folder, error)
        raise
    return _gather(settings, folder, outputs)


def _record_failure(settings: RunSettings, folder: Path, error: Exception) -> None:
    """Leave a failed run in MLflow, where the register step did not come to write it.

    On a cluster the backend keeps its failed runs, and not every step's pod may write to MLflow.
    """
    from mlflow.exceptions import MlflowException

    from components.registry import tracking
    from components.registry.client import model_name
    from components.registry.connection import connect

    told = said(folder)
    step = told[0].step if told else ""
    try:
        client = connect()
        tags = {tracking.DATASET_TAG: load_spec(settings.dataset).name}
        run = tracking.parent_run(client, model_name(settings.dataset), settings.run_id, tags)
        tracking.log_figures(client, run, settings.model_dump(mode="json"), {})
        tracking.log_failure(client, run, step, str(error))
    except (MlflowException, OSError) as problem:
        # Who reads this has an error to mend already; that one goes on.
        log.warning("the failed run is not in MLflow: %s", problem)


def materialize_locally(
    dataset: str, end: str, full: bool, rows: bool = False, follow: bool = True
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Bring the online features of a data set up to its sources and, with `rows`, give newcomers rows in the champion.

    Returns:
        The materialize step's report; and with `rows`: `new` users and items, and the champion's version before
        (`grown_from`) and now (`version`).

    Raises:
        UserError, ValidationStoppedError, RuntimeError: as `run_locally` does.
    """
    dataset = prepare(dataset)
    from components.encode.settings import EncodeSettings
    from components.validate.settings import ValidateSettings
    from pipelines.materialize import materialize_pipeline, rows_pipeline

    checks = ValidateSettings()
    pipeline = rows_pipeline(dataset, checks, EncodeSettings()) if rows else materialize_pipeline(dataset, checks)
    arguments = {"dataset": dataset, "end": end, "full": full}
    outputs = execute(pipeline, arguments, home() / "runs" / f"materialize-{new_run_id()}", follow)
    report: dict[str, Any] = read_json(Path(outputs["report"].path))
    return report, _rows_added(dataset, Path(outputs["found"].path)) if rows else None


def _rows_added(dataset: str, found: Path) -> dict[str, Any]:
    from components.registry.client import champion
    from components.registry.rows import FOUND

    grown, now = read_json(found / FOUND), champion(dataset)
    return {"new": grown["new"], "grown_from": grown["version"], "version": now and now.version}


def execute(pipeline: BaseComponent, arguments: dict[str, Any], folder: Path, follow: bool) -> dict[str, Any]:
    """Run a pipeline with its artefacts and logs in a new folder, and tell how it ended; its outputs by name.

    Raises:
        UserError, ValidationStoppedError, RuntimeError: what the step that failed said.
    """
    folder.mkdir(parents=True)
    _set_environment(folder)
    log = folder / "run.log"
    log.touch()
    try:
        with _following(log, follow), _captured(folder / "kfp.log"):
            outputs = _execute(pipeline, arguments, folder)
    except Exception as error:
        told = said(folder)
        report(folder, [told[0] if told else _lost(error)])
        raise
    report(folder, [])
    return outputs


def _lost(error: Exception) -> Failure:
    """What kfp says of a step that was killed before it could say anything."""
    named = re.search(r"Inner task failed: '([^']+)'", str(error))
    return Failure(named[1] if named else "unknown", LOST, str(error))


def _set_environment(folder: Path) -> None:
    quiet = {
        "BENTOML_DO_NOT_TRACK": "True",
        "FEAST_USAGE": "False",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "false",
    }
    os.environ.update(quiet, TANDEM_HOME=str(home()), TANDEM_RUN_DIR=str(folder))


def _execute(pipeline: BaseComponent, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    from kfp import local

    # Else kfp makes a workspace among the temporary files, which a killed run leaves there.
    places = {"pipeline_root": str(folder / "artifacts"), "workspace_root": str(folder / "workspace")}
    local.init(runner=local.SubprocessRunner(use_venv=False), **places)
    try:
        task = _without_retries(pipeline)(**arguments)
    except RuntimeError as error:
        raise _explained(folder, error) from None
    return dict(task.outputs)


def _without_retries(pipeline: BaseComponent) -> BaseComponent:
    """The pipeline with each task tried once: no node is lost here, and who waits wants to see the error."""
    spec = pipeline.pipeline_spec
    for graph in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in graph.tasks.values():
            task.ClearField("retry_policy")
    return pipeline


def _explained(folder: Path, error: Exception) -> Exception:
    """The error of the step that failed, as it told it in failure.json."""
    told = said(folder)
    if told is None:
        # kfp's words are coloured, as for a terminal.
        plain = re.sub(r"\x1b\[\d+m", "", str(error))
        return RuntimeError(f"{plain}; see {folder / 'kfp.log'}")
    failure, _ = told
    if failure.kind == "user":
        return UserError(failure.message)
    if failure.kind == "validation":
        return ValidationStoppedError(failure.message)
    return RuntimeError(f"step {failure.step}: {failure.message}; see {folder / 'kfp.log'}")


def _gather(settings: RunSettings, folder: Path, outputs: dict[str, Any]) -> RunResult:
    evaluation = Path(outputs["evaluation"].path)
    # Artefacts of a pipeline have no file names that a browser would know.
    shutil.copyfile(outputs["report"].path, folder / "report.html")
    shutil.copyfile(outputs["gate_card"].path, folder / "gate_card.md")
    paths = {
        "run": folder,
        "log": folder / "run.log",
        "evaluation": evaluation,
        "report": folder / "report.html",
        "gate_card": folder / "gate_card.md",
        "data_docs": Path(outputs["data_docs"].path) / "index.html",
    }
    return RunResult(
        run_id=settings.run_id,
        dataset=settings.dataset,
        metrics=read_json(evaluation / "metrics.json"),
        verdict=str(outputs["verdict"]),
        reasons=[str(reason) for reason in outputs["reasons"]],
        model_version=str(outputs["model_version"]) or None,
        paths={name: str(path) for name, path in paths.items()},
    )


@contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Send file descriptors 1 and 2 into `log`: kfp prints its own and the steps' output to both."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in enumerate(kept, start=1):
            os.dup2(original, descriptor)
            os.close(original)


@contextmanager
def _following(log: Path, follow: bool) -> Iterator[None]:
    """Copy what the steps append to `log` to stderr, as it comes."""
    if not follow:
        yield
        return
    stopped = threading.Event()
    terminal = os.dup(2)

    def copy() -> None:
        with log.open("rb") as file:
            while not stopped.wait(0.2):
                os.write(terminal, file.read())
            os.write(terminal, file.read())

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        os.close(terminal)
