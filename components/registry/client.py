"""The registry of models: one registered model for each data set, its champion, and the moves of that alias.

The evaluate step reads the champion here, the register step adds versions, the command line looks and rolls back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from components.dataset.catalog import name_of
from components.dataset.errors import UserError
from components.registry import aliases
from components.registry.connection import connect, exists, tracking_uri
from components.run import aside, write_json

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

log = logging.getLogger("tandem.registry")

#: Where the bundle lies among a run's artefacts.
BUNDLE = "bundle"
#: Written beside a downloaded bundle: name, version and run_id of the registered version.
REGISTERED = "registered.json"
RUN_ID_TAG = "tandem.run_id"
VERDICT_TAG = "tandem.verdict"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str
    verdict: str
    mlflow_run: str | None


def model_name(dataset: str) -> str:
    """The registered model of a data set, given by its name or by the path of its DatasetSpec.

    Raises:
        UserError: `dataset` is a path, and no DatasetSpec lies there.
    """
    return f"tandem-{name_of(dataset)}"


def champion(dataset: str) -> Registered | None:
    """The version that is champion now."""
    client, name = connect(), model_name(dataset)
    version = aliases.alias_version(client, name, aliases.CHAMPION)
    return None if version is None else registered(client.get_model_version(name, version))


def champion_bundle(dataset: str, destination: Path) -> Path | None:
    """Fetch the champion's bundle into the folder `destination`; None where there is no champion.

    Raises:
        RuntimeError: the champion's files cannot be fetched.
    """
    found = champion(dataset)
    return None if found is None else fetch(found, destination)


@contextmanager
def champion_of(dataset: str) -> Iterator[Path | None]:
    """The champion's bundle in a folder that is gone afterwards; None where there is no champion."""
    with TemporaryDirectory(prefix="tandem-champion-") as folder:
        yield champion_bundle(dataset, Path(folder) / BUNDLE)


def fetch(version: Registered, destination: Path) -> Path:
    """Fetch a version's bundle into the folder `destination`, with REGISTERED beside its files.

    Raises:
        RuntimeError: the files cannot be fetched.
    """
    client = connect()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    said = {"name": version.name, "version": version.version, "run_id": version.run_id}
    uri = client.get_model_version_download_uri(version.name, version.version)
    with aside(destination) as draft:
        try:
            folder = download_artifacts(artifact_uri=uri, dst_path=str(draft), tracking_uri=tracking_uri())
        except (MlflowException, OSError) as error:
            raise RuntimeError(f"{version.name} version {version.version}: cannot fetch {uri}: {error}") from error
        write_json(Path(folder) / REGISTERED, said)
        if Path(folder) != draft:
            _lift(Path(folder), draft)
    return destination


def history(dataset: str) -> list[dict[str, Any]]:
    """Every move of the champion alias, oldest first, as plain JSON content."""
    return [move.to_json() for move in aliases.moves(connect(), model_name(dataset))] if exists() else []


def rollback(dataset: str, to: str | None = None) -> dict[str, Any]:
    """Give the champion alias back to the version that held it before, or to the earlier champion `to`.

    Returns:
        The move, as `history` tells it.

    Raises:
        UserError: there is no such champion, or another process moved the alias at the same moment.
    """
    client, name = connect(), model_name(dataset)
    move = aliases.roll_back(client, name, os.environ.get("USER", ""), to)
    log.info("%s: champion is version %s again", name, move.version)
    return move.to_json()


def version_of(dataset: str, version: str) -> Registered:
    """A version by its number.

    Raises:
        UserError: the registry has none of that number.
    """
    from mlflow.exceptions import MlflowException

    client, name = connect(), model_name(dataset)
    try:
        return registered(client.get_model_version(name, version))
    except MlflowException as error:
        raise UserError(f"{name} has no version {version}: {error}") from None


def find_version(client: MlflowClient, name: str, run_id: str) -> Registered | None:
    """The version that a run registered."""
    found = aliases.search_versions(client, name, {RUN_ID_TAG: run_id})
    return registered(min(found, key=lambda version: int(version.version))) if found else None


def register_version(
    client: MlflowClient, name: str, run_id: str, mlflow_run: str, tags: Mapping[str, str], description: str
) -> Registered:
    """Register the bundle among a run's artefacts as a version, once for each run.

    Args:
        client: MLflow.
        name: The registered model; made if it is not there.
        run_id: The pipeline run.
        mlflow_run: MLflow's id of that run, which holds the bundle.
        tags: What the version says of itself.
        description: Markdown shown with the version.
    """
    found = find_version(client, name, run_id)
    if found is not None:
        return found
    aliases.ensure_model(client, name, "A collaborative click-through-rate model, served without a language model.")
    source = f"{client.get_run(mlflow_run).info.artifact_uri}/{BUNDLE}"
    said = {**tags, RUN_ID_TAG: run_id}
    told = {"tags": said, "description": description, "await_creation_for": 0}
    return registered(aliases.persist(client.create_model_version, name, source, mlflow_run, **told))


def registered(version: ModelVersion) -> Registered:
    """A version as MLflow tells it."""
    run_id, verdict = (version.tags.get(tag, "") for tag in (RUN_ID_TAG, VERDICT_TAG))
    return Registered(version.name, str(version.version), run_id, verdict, version.run_id or None)


def _lift(folder: Path, draft: Path) -> None:
    """Move the files of a folder inside `draft` up into `draft` itself."""
    for file in list(folder.iterdir()):
        file.rename(draft / file.name)
    folder.rmdir()
