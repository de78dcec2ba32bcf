"""Start the service on what the deploy step left under `home()`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from components.dataset.errors import UserError
from components.run import home, read_json


def start(dataset: str | None, host: str, port: int) -> None:
    """Replace this process by `bentoml serve` on the deployed model of a data set, or the one deployed last.

    Raises:
        UserError: nothing was deployed yet.
    """
    name = "latest" if dataset is None else dataset.replace("-", "_")
    deployed = home() / "serving" / f"{name}.json"
    if not deployed.is_file():
        raise UserError(f"{deployed}: nothing is deployed there; run 'tandem run' first, or give its --workdir")
    content = read_json(deployed)
    identifier = content.get("dataset", name)
    os.environ.update(
        TANDEM_SERVE_MODEL=content["model"],
        TANDEM_SERVE_FEATURE_STORE=str(home() / "feast" / f"{identifier}.yaml"),
        BENTOML_HOME=str(home() / "bentoml"),
        BENTOML_DO_NOT_TRACK="True",
    )
    root = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:Tandem"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port), "--working-dir", root])  # noqa: S606
