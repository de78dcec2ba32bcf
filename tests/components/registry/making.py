"""A registry of one's own, and versions in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from components.registry import aliases, client, tracking
from components.registry.connection import connect

FOREIGN = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")


@contextmanager
def own_registry(home: Path) -> Iterator[Path]:
    """An empty registry under `home`, and nothing injected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_HOME", str(home))
        for name in (*FOREIGN, "MLFLOW_EXPERIMENT_NAME", "TANDEM_RUN_DIR"):
            patch.delenv(name, raising=False)
        yield home


def new_dataset() -> str:
    """A data set that no other test knows."""
    return f"shop-{uuid4().hex[:8]}"


def add_version(dataset: str, run_id: str, content: str = "weights") -> str:
    """Register a bundle of one file; its version."""
    mlflow, name = connect(), client.model_name(dataset)
    run = tracking.parent_run(mlflow, name, run_id, {})
    mlflow.log_text(run.info.run_id, content, f"{client.BUNDLE}/model.onnx")
    return client.register_version(mlflow, name, run_id, run.info.run_id, {}, "").version


def promote(dataset: str, version: str, expected: str | None) -> None:
    """Make a version champion as the register step does."""
    mlflow, name = connect(), client.model_name(dataset)
    aliases.claim(mlflow, name, version, expected, f"run-{version}")
    aliases.settle(mlflow, name)


def pointed(dataset: str) -> tuple[str | None, str | None]:
    """Versions of the aliases champion and previous_champion."""
    mlflow, name = connect(), client.model_name(dataset)
    return tuple(aliases.alias_version(mlflow, name, alias) for alias in (aliases.CHAMPION, aliases.PREVIOUS_CHAMPION))


def said(dataset: str) -> list[tuple[str, str | None]]:
    """Action and version of every move."""
    return [(move["action"], move["version"]) for move in client.history(dataset)]
