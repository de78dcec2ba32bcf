"""Where a run keeps its things, and how its steps report to it. Standard library only."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from components.dataset.errors import UserError, ValidationStoppedError

log = logging.getLogger("tandem")
#: In the folder that a step has written: the steps that led to it, its own the last.
STEPS = "steps.json"
#: In a folder of checkpoints to begin with: whose they are; empty where training starts anew.
CHAMPION = "champion.json"
#: In the run's folder: the step that failed last, why and when; and the verdict on the candidate, with the gate card.
FAILURE, VERDICT = "failure.json", "verdict.json"
#: How it names the errors that are not faults of ours.
KINDS = {UserError: "user", ValidationStoppedError: "validation"}


def home() -> Path:
    """The directory of all state: runs, registries, online store, caches (TANDEM_HOME, else ./.tandem)."""
    return Path(os.environ.get("TANDEM_HOME") or ".tandem").absolute()


def data_home() -> Path:
    """The directory of downloaded and generated source data (TANDEM_DATA, else ~/.local/share/tandem)."""
    return Path(os.environ.get("TANDEM_DATA") or Path.home() / ".local" / "share" / "tandem").absolute()


def run_dir() -> Path:
    """The directory of the pipeline run in progress (TANDEM_RUN_DIR, else runs/$TANDEM_RUN_ID under `home()`)."""
    name = os.environ.get("TANDEM_RUN_ID") or "adhoc"
    return Path(os.environ.get("TANDEM_RUN_DIR") or home() / "runs" / name).absolute()


@dataclass(frozen=True)
class StepRecord:
    """A step that came to its end: when it began (seconds since 1970), what it took, and the GPUs that it held."""

    step: str
    began: float
    seconds: float
    gpus: int

    @property
    def gpu_seconds(self) -> float:
        """Seconds on the clock times GPUs: a node is paid for whether its GPU is busy or not."""
        return self.seconds * self.gpus


@contextmanager
def step(name: str, output: Path | None = None, inputs: Iterable[Path] = ()) -> Iterator[None]:
    """Run the body of a pipeline step: log it (logger 'tandem'), record what it took, and say why it stopped.

    Steps share no disk on a cluster, so each artefact carries the records of all steps behind it: STEPS in the folder
    `output` holds those of `inputs` and this step's own. On an error failure.json says in the run's folder whether the
    input was wrong (`user`), validation stopped the run (`validation`), or the fault is ours (`error`).

    Args:
        name: The step.
        output: The folder that the body writes; None for a step that no other follows.
        inputs: Folders that earlier steps wrote.
    """
    folder = run_dir()
    folder.mkdir(parents=True, exist_ok=True)
    _log_to(folder / "run.log", name)
    log.info("started")
    began, started = time.time(), time.perf_counter()
    try:
        yield
    except Exception as error:
        kind = next((kind for type_, kind in KINDS.items() if isinstance(error, type_)), "error")
        message = str(error) or type(error).__name__
        write_json(folder / FAILURE, {"kind": kind, "step": name, "message": message, "at": round(time.time(), 3)})
        raise
    record = StepRecord(name, round(began, 3), round(time.perf_counter() - started, 3), _gpus())
    if output is not None:
        write_json(output / STEPS, [asdict(one) for one in (*steps_behind(inputs), record)])
    log.info("finished in %.1f s", record.seconds)


def steps_behind(folders: Iterable[Path]) -> list[StepRecord]:
    """The records of all steps that led to these folders, each once, in the order in which they began."""
    files = [folder / STEPS for folder in folders]
    records = {StepRecord(**record) for file in files if file.is_file() for record in read_json(file)}
    return sorted(records, key=lambda record: (record.began, record.step))


def _gpus() -> int:
    """GPUs that this process sees; one that never loaded torch has no use for any."""
    torch = sys.modules.get("torch")
    return 0 if torch is None else int(torch.cuda.device_count())


def _log_to(path: Path, name: str) -> None:
    """Log the project's own lines to stderr and to the run's log, which says which step spoke."""
    format_ = logging.Formatter(f"%(asctime)s {name:<16} %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    for handler in (logging.StreamHandler(sys.stderr), logging.FileHandler(path, encoding="utf-8")):
        handler.setFormatter(format_)
        log.addHandler(handler)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder at; it takes `path`'s place only on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{uuid4().hex[:8]}"
    try:
        yield draft
        _replace(draft, path)
    finally:
        _remove(draft)


def _replace(draft: Path, path: Path) -> None:
    if draft.is_dir() and path.is_dir():
        # A folder cannot be renamed over a full one: the old one steps aside first.
        old = path.parent / f".{path.name}.{uuid4().hex[:8]}"
        path.replace(old)
        draft.replace(path)
        _remove(old)
    else:
        draft.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside and rename; NaN and infinities are refused.

    Raises:
        ValueError: `content` holds a number that JSON has not.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with aside(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
