"""Start a step's function again in several processes under torchrun, and wait for it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python

from components.dataset.errors import UserError
from components.run import read_json
from components.training.group import started_by_torchrun
from components.training.loop import TrainingError
from components.training.settings import ProcessSettings
from components.training.worker import CALL, FAILURE, REFUSAL

log = logging.getLogger("tandem.training")

ROOT = Path(__file__).resolve().parents[2]
#: How often a group whose worker was killed is started again, each time from the last checkpoint.
RESTARTS = 3
ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (UserError, TrainingError)}


def train_elsewhere(function: Callable[..., Any], threads: int, **arguments: Any) -> bool:
    """Call a function in several processes, of this machine or of several, where the settings ask for more than one.

    Args:
        function: A module's function; its annotations tell how the arguments are read from JSON.
        threads: Of each process, on a CPU.
        arguments: Paths, pydantic models and JSON values; among them `output`, the path that the function writes, and
            `settings`, which say on how many machines and in how many processes.

    Returns:
        Whether it was called; False where this process is to do the work.

    Raises:
        UserError, TrainingError: as the function did.
        RuntimeError: a worker failed or was killed each time, or the machines were not given or lost.
    """
    settings: ProcessSettings = arguments["settings"]
    if settings.nodes > 1 and not started_by_torchrun():
        from components.training.trainjob import train_on_nodes

        train_on_nodes(function, settings, threads, arguments)
        return True
    processes = processes_to_start(settings)
    if processes > 1:
        train_together(function, processes, threads, **arguments)
    return processes > 1


def call_of(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a module's function as JSON content, which a worker carries out."""
    return {"target": f"{function.__module__}:{function.__name__}", "arguments": to_jsonable_python(arguments)}


def raise_refusal(folder: Path) -> None:
    """Raise what the workers have refused to do, if they have.

    Raises:
        UserError, TrainingError: as the function did.
    """
    if (folder / REFUSAL).is_file():
        told = read_json(folder / REFUSAL)
        raise ERRORS[told["kind"]](told["message"])


def processes_to_start(settings: ProcessSettings) -> int:
    """How many processes this one should start for the training; 1: none, train here.

    By default one for each GPU, and one in all on a CPU.

    Raises:
        UserError: more processes than GPUs are asked for.
    """
    if started_by_torchrun():
        return 1
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and settings.processes > gpus:
        raise UserError(f"processes={settings.processes}, but there are {gpus} GPUs; write 0 for one process each")
    return settings.processes or max(1, gpus)


def train_together(function: Callable[..., Any], processes: int, threads: int, **arguments: Any) -> None:
    """Call a function in several processes of this machine, which find each other through `Group.join`.

    A worker that is killed lets the whole group start again from the last checkpoint, at most `RESTARTS` times.

    Args:
        function: A module's function; its annotations tell how the arguments are read from JSON.
        processes: How many.
        threads: Of each process, on a CPU.
        arguments: Paths, pydantic models and JSON values.

    Raises:
        UserError: as the function did.
        TrainingError: as the function did.
        RuntimeError: a worker failed or was killed each time.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-") as name:
        folder = Path(name)
        (folder / CALL).write_text(json.dumps(call_of(function, arguments)), encoding="utf-8")
        log.info("training in %d processes", processes)
        for attempt in range(RESTARTS + 1):
            code = _follow(_command(processes, folder), _environment(threads))
            raise_refusal(folder)
            if code == 0:
                return
            failed = folder / FAILURE
            why = failed.read_text(encoding="utf-8") if failed.is_file() else f"exit code {code}"
            failed.unlink(missing_ok=True)
            log.warning("a training process failed or was killed (%s); %d tries left", why, RESTARTS - attempt)
        raise RuntimeError(f"a training process failed or was killed {RESTARTS + 1} times: {why}")


def _command(processes: int, folder: Path) -> list[str]:
    # We restart the agent, and it nothing: in torch 2.13 the workers of its second try find the addresses of its
    # first in the store that both use, and wait for processes that are gone.
    agent = ["-m", "components.training.agent", "--standalone", "--max-restarts=0", f"--nproc-per-node={processes}"]
    return [sys.executable, *agent, *log_folder(folder), "-m", "components.training.worker", str(folder)]


def log_folder(folder: Path) -> list[str]:
    """Where torchrun keeps its files: if not told, in a new folder among the temporary files, which stays there."""
    return [f"--log-dir={folder / 'torchrun'}"]


def _environment(threads: int) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **pinned, "PYTHONPATH": paths}


def _follow(command: list[str], environment: dict[str, str]) -> int:
    """Run a command whose lines on stdout go to our log; its exit code."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is piped
            for line in process.stdout:
                log.info("%s", line.rstrip("\n"))
            return process.wait()
        finally:
            # An interrupt ends the agent, which ends its workers.
            process.terminate()
