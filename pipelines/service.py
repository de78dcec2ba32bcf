"""Start the service on what the deploy step left under `home()`, and keep what it serves what the registry says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from components.dataset.bundle import SPEC
from components.dataset.catalog import load_spec, name_of
from components.dataset.errors import UserError
from components.dataset.spec import DatasetSpec, identifier_of, read_spec
from components.run import home, read_json
from serving.settings import ALIASES, CHAMPION, PREFIX, ServeSettings

if TYPE_CHECKING:
    from components.monitor.pushing import Pusher

log = logging.getLogger("tandem.registry")
ROOT = Path(__file__).resolve().parents[1]


def start(
    dataset: str | None, host: str, port: int, workers: int, assignments: list[str], every: float, push: bool = False
) -> None:
    """Replace this process by the service's, beside a process that follows the registry.

    Args:
        dataset: Name of the data set whose champion is served, or path of its DatasetSpec; the one deployed last if
            None.
        host: Address to listen on.
        port: Port to listen on.
        workers: Processes that answer there.
        assignments: Settings of the service, `name=value` each.
        every: Seconds between looks at the registry.
        push: Put what callers report into the online histories and counts too, by one more process.

    Raises:
        UserError: nothing was deployed yet, a setting is impossible, or there is nothing to push.
    """
    name = name_of(dataset) if dataset else _deployed()
    identifier = identifier_of(name)
    models, features = home() / "serving" / identifier, home() / "feast" / f"{identifier}.yaml"
    if not features.is_file():
        raise UserError(f"{features}: nothing is deployed there; run 'tandem run' first, or give its --workdir")
    defaults = {"models": models, "feature_store": features, "log": home() / "served" / identifier}
    environment = {PREFIX + name.upper(): str(value) for name, value in defaults.items()}
    os.environ.update({**environment, **os.environ, **_variables(assignments)})
    settings = ServeSettings.read()
    # BentoML keeps its counts there and throws away those that it finds: two services must not share it.
    own = home() / "serving" / "bentoml" / str(port)
    os.environ.update(BENTOML_HOME=str(own), BENTOML_DO_NOT_TRACK="True", TANDEM_HOME=str(home()))
    version = ["--version", settings.version] if settings.version else []
    _beside("follow", "--dataset", name, "--to", str(settings.models), "--every", str(every), *version)
    if push:
        _see_history(models)
        _beside("push", "--follow", "--models", str(settings.models), "--log", str(settings.log))
    # The service's own code comes first, wherever this was started.
    os.environ["PYTHONPATH"] = _path()
    words = ["-m", "serving", "--host", host, "--port", str(port), "--workers", str(workers)]
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606


def follow(dataset: str, folder: Path, every: float, version: str | None, beside: int | None) -> None:
    """Mirror the registry into a folder again and again.

    Args:
        dataset: Data set whose models are followed.
        folder: Where they go.
        every: Seconds from one look to the next.
        version: A version that is to be there whatever the aliases say.
        beside: Id of the process that started this one; with it this one ends.
    """
    _give_way(beside)
    from components.registry.mirror import mirror

    for _ in _rounds(every, beside):
        try:
            mirror(dataset, folder, version)
        except Exception as error:  # the registry is away: what is served stays, and it may come back
            log.warning("the registry cannot be followed: %s", error)


def push_feedback(
    dataset: str, models: Path | None, folder: Path | None, every: float, beside: int | None, alive: Path | None
) -> None:
    """Put what callers of the service report into the online histories and counts, again and again.

    Args:
        dataset: Name of a data set, or path of its DatasetSpec; not looked at where `models` is given.
        models: Folder that `follow` keeps: the champion's own DatasetSpec counts, whichever it is at the moment.
        folder: The service's log folder; that of `tandem serve` if None.
        every: Seconds from one look at it to the next.
        beside: Id of the process that started this one; with it this one ends.
        alive: File that is touched after each look.

    Raises:
        UserError: the data set has neither a history nor counts of its users; a champion that has none is waited out.
    """
    _give_way(beside)
    known: str | None = None
    pusher: Pusher | None = None
    for _ in _rounds(every, beside, alive):
        try:
            wanted = dataset if models is None else _champions_spec(models)
            if wanted is not None and wanted != known:
                known, pusher = wanted, _pusher(wanted, folder, waits=models is not None)
            changed = 0 if pusher is None else pusher.look()
        except UserError:
            raise
        except Exception as error:  # the online store is away: what is not written yet waits, and it may come back
            log.warning("feedback cannot be pushed: %s", error)
        else:
            if changed:
                log.info("%d users brought up to what was reported", changed)


def _pusher(dataset: str, folder: Path | None, waits: bool) -> Pusher | None:
    """What pushes the feedback of a data set; None where no event could enter and it `waits` for one that can."""
    spec = load_spec(dataset)
    if waits and not _takes_events(spec):
        log.warning("the champion of '%s' has no history and no counts: nothing is pushed for it", spec.name)
        return None
    from components.monitor.pushing import Pusher
    from feature_repo.store import open_store

    return Pusher(open_store(spec), spec, folder or home() / "served" / spec.identifier)


def _champions_spec(models: Path) -> str | None:
    """Path of the champion's DatasetSpec in a folder of models; None before there is one."""
    path = models / ALIASES
    version = read_json(path)[CHAMPION] if path.is_file() else None
    return str(models / version / SPEC) if version else None


def _beside(*words: str) -> None:
    """Start a command of ours that ends with this process, whatever this process becomes."""
    command = [sys.executable, "-m", "pipelines.cli", *words, "--beside", str(os.getpid())]
    subprocess.Popen(command, env={**os.environ, "PYTHONPATH": _path()}, stdout=sys.stderr)


def _give_way(beside: int | None) -> None:
    """Let the service that this process stands beside have the core first: it is to be ready soon, and to answer."""
    if beside is not None:
        os.nice(10)


def _path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _see_history(models: Path) -> None:
    """Refuse to push where the champion in a folder of models has nothing that an event could enter."""
    path = _champions_spec(models)
    if path is not None and not _takes_events(read_spec(Path(path))):
        raise UserError(f"{path}: has no history that an event could enter, and no counts; serve without --push")


def _takes_events(spec: DatasetSpec) -> bool:
    """Whether events change a user's features: a history, or counts."""
    return spec.history is not None or bool(spec.activity_fields("user"))


def _rounds(every: float, beside: int | None, alive: Path | None = None) -> Iterator[None]:
    """Rounds of work, so many seconds apart, until the process that it stands beside is gone; it logs to stderr.

    After each one it touches the file `alive`, by which a probe sees that it has not got stuck.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    while beside is None or os.getppid() == beside:
        yield
        if alive is not None:
            alive.touch()
        until = time.monotonic() + every
        while (left := until - time.monotonic()) > 0 and (beside is None or os.getppid() == beside):
            time.sleep(min(left, 1.0))


def _deployed() -> str:
    latest = home() / "serving" / "latest.json"
    if not latest.is_file():
        raise UserError(f"{latest}: nothing is deployed there; run 'tandem run' first, or give its --workdir")
    return str(read_json(latest)["dataset"])


def _variables(assignments: list[str]) -> dict[str, str]:
    """Settings as the environment variables that the service reads.

    Raises:
        UserError: an assignment has no '='.
    """
    pairs = [assignment.partition("=") for assignment in assignments]
    wrong = [name for name, equals, _ in pairs if not name or not equals]
    if wrong:
        raise UserError(f"--set {wrong[0]}: write name=value, such as --set canary=0.1")
    return {PREFIX + name.upper(): value for name, _, value in pairs}
