"""The way to MLflow: the server named by the environment, else a database and a folder under `home()`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from components.dataset.errors import UserError
from components.run import home

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

#: Models and runs of others are data, never code; and what happens here is told to nobody.
SAFE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
FILE = "sqlite:///"
QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "GIT_PYTHON_REFRESH": "quiet"}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database under `home()`.

    Raises:
        UserError: the address is a folder, which MLflow no longer takes.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        home().mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{home() / 'mlflow.db'}"
    if urlsplit(given).scheme in {"", "file"}:
        raise UserError(f"MLFLOW_TRACKING_URI={given}: a folder is no registry; write sqlite:///FILE or http://HOST")
    return given


def exists() -> bool:
    """Whether there is a registry to look into; a database under `home()` is made by the first who writes."""
    uri = tracking_uri()
    return not uri.startswith(FILE) or Path(uri.removeprefix(FILE)).is_file()


def artifact_location(experiment: str) -> str | None:
    """Where a new experiment keeps its files: with the server if there is one, else under `home()`.

    Without it MLflow would write into whatever folder the process happens to run in.
    """
    if urlsplit(tracking_uri()).scheme in {"http", "https"}:
        return None
    return (home() / "mlartifacts" / experiment).as_uri()


def connect() -> MlflowClient:
    """A client of the tracking server and of the registry; MLFLOW_REGISTRY_URI is respected."""
    os.environ.update(SAFE)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    tracking = tracking_uri()
    return MlflowClient(tracking_uri=tracking, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or tracking)
