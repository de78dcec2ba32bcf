"""A training on several machines: a TrainJob of Kubeflow Trainer v2, started, watched and cleaned up by the step.

The machines share a volume, on which `home()` lies: what the step was given is laid there, and the result fetched from
there. The runtime (infra/trainer) says what a machine is; torchrun finds the others through what its torch plugin puts
into the environment (PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, ...).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from components.dataset.errors import UserError
from components.run import home, run_dir
from components.training.launch import call_of, log_folder, raise_refusal
from components.training.settings import ProcessSettings
from components.training.worker import CALL, FAILURE

log = logging.getLogger("tandem.training")

#: The runtime of the namespace, or of the cluster where the namespace has none of this name.
RUNTIME = "torch-distributed"
#: The argument that names what the function writes.
OUTPUT = "output"
#: Of the step's own environment, what its machines need too.
HANDED_ON = ("TANDEM_HOME", "TANDEM_RUN_ID", "TANDEM_GIT_COMMIT", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RUN_LABEL = "tandem.dev/run"
#: Seconds between two looks at the job, and of its log the lines that an error shows.
LOOK, LINES = 5, 20
#: Seconds that a deleted job may take to be gone.
GONE = 300


def train_on_nodes(
    function: Callable[..., Any], settings: ProcessSettings, threads: int, arguments: Mapping[str, Any]
) -> None:
    """Call a function on several machines, whose processes find each other through `Group.join`.

    Whatever happens, the TrainJob is gone afterwards; one that a killed step has left is replaced.

    Args:
        function: A module's function; its annotations tell how the arguments are read from JSON.
        settings: How many machines and processes, and how long they may take.
        threads: Of each process, on a CPU.
        arguments: Paths, pydantic models and JSON values; the path `output` is what the function writes.

    Raises:
        UserError: as the function did, or the image is not known.
        TrainingError: as the function did.
        RuntimeError: the job failed, or was not done in time.
    """
    image = os.environ.get("TANDEM_TRAIN_IMAGE")
    if not image:
        raise UserError("nodes > 1 needs a cluster, and TANDEM_TRAIN_IMAGE to name its image; write nodes: 1 elsewhere")
    name = _name(function, arguments)
    # A job that a killed step has left may still write until it is gone: each try has a folder of its own.
    folder = home() / "trainjobs" / f"{name}-{uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        call = call_of(function, _laid_out(arguments, folder))
        (folder / CALL).write_text(json.dumps(call), encoding="utf-8")
        with _terminated():
            _train(name, image, folder, settings, threads)
        _fetch(folder / OUTPUT, Path(arguments[OUTPUT]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """The same for the same step of the same run, so that a step that is tried again finds what it had left."""
    content = json.dumps([run_dir().name, call_of(function, arguments)], sort_keys=True)
    return f"tandem-{function.__name__}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _laid_out(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments with every file and folder in a place that all machines see."""
    inputs = folder / "inputs"
    inputs.mkdir()

    def laid(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [laid(f"{name}-{number}", one) for number, one in enumerate(value)]
        if not isinstance(value, Path):
            return value
        if name == OUTPUT:
            return folder / OUTPUT
        # Files are read and never written: a link saves a copy where the step's inputs lie on the volume already.
        shutil.copytree(value, inputs / name, copy_function=_link_or_copy)
        return inputs / name

    return {name: laid(name, value) for name, value in arguments.items()}


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _train(name: str, image: str, folder: Path, settings: ProcessSettings, threads: int) -> None:
    from kubeflow.trainer import CustomTrainerContainer
    from kubeflow.trainer.options import Labels, Name, TrainerCommand

    client = _client()
    _clear(client, name)
    environment = {key: os.environ[key] for key in HANDED_ON if key in os.environ}
    environment |= {"TANDEM_HOME": str(home()), **dict.fromkeys(THREADS, str(threads))}
    trainer = CustomTrainerContainer(image=image, num_nodes=settings.nodes, env=environment)
    labels = {RUN_LABEL: run_dir().name[:63]}
    options = [Name(name), Labels(labels), TrainerCommand(_command(folder, settings)), _pods(labels)]
    log.info("training on %d machines: TrainJob %s", settings.nodes, name)
    client.train(runtime=RUNTIME, trainer=trainer, options=options)
    try:
        _wait(client, name, folder, settings.nodes_minutes)
    finally:
        client.delete_job(name)


def _client() -> Any:
    from kubeflow.trainer import TrainerClient
    from kubernetes.config import ConfigException

    try:
        return TrainerClient()
    except ConfigException as error:
        raise UserError(f"nodes > 1 needs a Kubernetes cluster ({error}); write nodes: 1 elsewhere") from None


def _clear(client: Any, name: str) -> None:
    """Remove the job that a killed step has left, and wait until it is gone.

    Raises:
        RuntimeError: it does not go.
    """
    try:
        client.delete_job(name)
    except RuntimeError:
        return  # there is none; an API that does not answer is met again at once
    log.info("TrainJob %s was left over, and is replaced", name)
    for _ in range(GONE // LOOK):
        try:
            client.get_job(name)
        except RuntimeError:
            return
        time.sleep(LOOK)
    raise RuntimeError(f"TrainJob {name} was left over, and is still there {GONE} seconds after its deletion")


def _command(folder: Path, settings: ProcessSettings) -> list[str]:
    """torchrun, which reads from the environment whatever is not said here."""
    processes = [f"--nproc-per-node={settings.processes}"] if settings.processes else []
    torchrun = ["python", "-m", "torch.distributed.run", *processes, *log_folder(folder)]
    return [*torchrun, "-m", "components.training.worker", str(folder)]


def _pods(labels: Mapping[str, str]) -> Any:
    """What the pods of this job have besides what their runtime gives them: the run that they belong to."""
    from kubeflow.trainer.options import (
        JobSetSpecPatch,
        JobSetTemplatePatch,
        JobSpecPatch,
        JobTemplatePatch,
        PodTemplatePatch,
        ReplicatedJobPatch,
        RuntimePatch,
        TrainingRuntimeSpecPatch,
    )

    pod = PodTemplatePatch(metadata={"labels": dict(labels)})
    job = ReplicatedJobPatch(name="node", template=JobTemplatePatch(spec=JobSpecPatch(template=pod)))
    jobs = JobSetTemplatePatch(spec=JobSetSpecPatch(replicated_jobs=[job]))
    return RuntimePatch(TrainingRuntimeSpecPatch(template=jobs))


def _wait(client: Any, name: str, folder: Path, minutes: float) -> None:
    seen: list[str] = []

    def tell(job: Any) -> None:
        if seen[-1:] != [job.status]:
            seen.append(job.status)
            log.info("TrainJob %s: %s", name, job.status.lower())

    try:
        client.wait_for_job_status(
            name, timeout=max(2 * LOOK, round(60 * minutes)), polling_interval=LOOK, callbacks=[tell]
        )
    except TimeoutError:
        raise RuntimeError(f"TrainJob {name} was not done in {minutes:g} minutes; raise nodes_minutes") from None
    except RuntimeError as error:
        raise_refusal(folder)
        raise RuntimeError(f"{error}: {_why(client, name, folder)}") from error
    raise_refusal(folder)


def _why(client: Any, name: str, folder: Path) -> str:
    """The first worker's error, else the last lines of the first machine's log."""
    if (folder / FAILURE).is_file():
        return (folder / FAILURE).read_text(encoding="utf-8")
    try:
        lines = list(client.get_job_logs(name))
    except RuntimeError as error:
        return f"and its log cannot be read ({error})"
    return "\n".join(lines[-LINES:]) or "it has left no log"


def _fetch(made: Path, output: Path) -> None:
    if not made.is_dir():
        raise RuntimeError(
            f"the TrainJob is complete and has written nothing to {made}; is TANDEM_HOME a shared volume?"
        )
    shutil.copytree(made, output, dirs_exist_ok=True)


@contextmanager
def _terminated() -> Iterator[None]:
    """Let a termination from outside run the cleaning-up, as an interrupt does."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
