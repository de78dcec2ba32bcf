"""Start the service on what the deploy step left under `home()`, and keep what it serves what the registry says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from components.dataset.errors import UserError
from components.run import home, read_json
from serving.settings import PREFIX, ServeSettings

log = logging.getLogger("tandem.registry")
ROOT = Path(__file__).resolve().parents[1]


def start(dataset: str | None, host: str, port: int, assignments: list[str], every: float) -> None:
    """Replace this process by `bentoml serve`, beside a process that follows the registry.

    Args:
        dataset: Data set whose champion is served; the one deployed last if None.
        host: Address to listen on.
        port: Port to listen on.
        assignments: Settings of the service, `name=value` each.
        every: Seconds between looks at the registry.

    Raises:
        UserError: nothing was deployed yet, or a setting is impossible.
    """
    name = dataset or _deployed()
    identifier = name.replace("-", "_")
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
    following = [sys.executable, "-m", "pipelines.cli", "follow", "--dataset", name]
    following += ["--to", str(settings.models), "--every", str(every), "--beside", str(os.getpid())]
    following += ["--version", settings.version] if settings.version else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.Popen(following, env={**os.environ, "PYTHONPATH": path}, stdout=sys.stderr)
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Tandem"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), "--working-dir", str(ROOT)])  # noqa: S606


def follow(dataset: str, folder: Path, every: float, version: str | None, beside: int | None) -> None:
    """Mirror the registry into a folder again and again.

    Args:
        dataset: Data set whose models are followed.
        folder: Where they go.
        every: Seconds from one look to the next.
        version: A version that is to be there whatever the aliases say.
        beside: Id of the process that started this one; with it this one ends.
    """
    from components.registry.mirror import mirror

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    while beside is None or os.getppid() == beside:
        try:
            mirror(dataset, folder, version)
        except Exception as error:  # the registry is away: what is served stays, and it may come back
            log.warning("the registry cannot be followed: %s", error)
        _wait(every, beside)


def _wait(seconds: float, beside: int | None) -> None:
    until = time.monotonic() + seconds
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
