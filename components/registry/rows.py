"""Versions that have gained rows: the same model, with rows for users and items that came after its training.

A version is never changed. What has gained rows is a version of its own: whoever follows the registry takes it up as
any other, and a rollback gives the one before back. Its bundle and its checkpoint lie among the artefacts of the run
that trained the model, in a folder named by what was added.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from components.dataset.bundle import ROW_MAPS, Bundle, file_digest
from components.dataset.errors import UserError
from components.registry import aliases
from components.registry.client import BUNDLE, Registered, registered
from components.registry.connection import connect, tracking_uri
from components.registry.continuation import CHECKPOINTS
from components.run import aside

ROWS = "rows"
CHECKPOINT = "checkpoint"
#: The candidate's among the checkpoints of a run: an arm that has met no PLM has no map.
TRAINED = f"{CHECKPOINTS}/candidate"
#: Of a version: the one that it was made from, and the digest of what it has gained.
GROWN_TAG, ROWS_TAG = "tandem.grown_from", "tandem.rows"
#: What is handed from the step that finds newcomers to the one that adds their rows.
FOUND, KEYS = "found.json", "keys.parquet"


class Outcome(StrEnum):
    """What became of newcomers."""

    NOTHING = "nothing new"
    ADDED = "rows added"
    MOVED = "another champion"
    ROLLED_BACK = "rolled back before"


def refuse_without_maps(version: Registered, bundle: Bundle) -> None:
    """Let no version pass that cannot make rows.

    Raises:
        UserError: it was trained without maps of rows, or they were not kept with it.
    """
    if not bundle.manifest["lineage"].get("row_maps"):
        raise UserError(
            f"{version.name} version {version.version} has no map that makes rows of texts; train one: --method ctrl "
            "--set finetune.map_rows=[item] --set finetune.hidden_items=0.3 (for users too: map_rows=[user, item])"
        )


def fetch_checkpoint(version: Registered, bundle: Bundle, destination: Path) -> Path:
    """Fetch the checkpoint that a version's bundle was made from, with its maps, into the folder `destination`.

    Raises:
        RuntimeError: it cannot be fetched, or the maps are not those that the bundle names.
    """
    client = connect()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    tags = client.get_model_version(version.name, version.version).tags
    place = f"{ROWS}/{tags[ROWS_TAG]}/{CHECKPOINT}" if ROWS_TAG in tags else TRAINED
    with TemporaryDirectory(prefix="tandem-checkpoint-") as folder, aside(destination) as draft:
        where = {"run_id": _run_of(version), "dst_path": folder, "tracking_uri": tracking_uri()}
        try:
            found = Path(download_artifacts(artifact_path=place, **where))
        except (MlflowException, OSError) as error:
            raise RuntimeError(f"{version.name} version {version.version}: cannot fetch {place}: {error}") from error
        shutil.copytree(found, draft)
    if file_digest(destination / ROW_MAPS) != bundle.manifest["lineage"]["row_maps"]:
        raise RuntimeError(f"{version.name} version {version.version}: {ROW_MAPS} is not the one that it was made with")
    return destination


def add_version(base: Registered, digest: str, bundle: Path, checkpoint: Path, description: str) -> Registered:
    """Register what a version has become with more rows, once for each digest; no alias moves.

    Args:
        base: The version that has gained rows.
        digest: Names what it has gained.
        bundle: The new bundle's folder.
        checkpoint: Folder of the checkpoint that it was made from, with its maps.
        description: Markdown shown with the version.
    """
    client = connect()
    known = aliases.search_versions(client, base.name, {ROWS_TAG: digest})
    if known:
        return registered(known[0])
    run_id = _run_of(base)
    place = f"{ROWS}/{digest}"
    for folder, name in ((bundle, BUNDLE), (checkpoint, CHECKPOINT)):
        client.log_artifacts(run_id, str(folder), f"{place}/{name}")
    tags = client.get_model_version(base.name, base.version).tags
    said = {**tags, GROWN_TAG: base.version, ROWS_TAG: digest}
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}/{BUNDLE}"
    told = {"tags": said, "description": description, "await_creation_for": 0}
    return registered(aliases.persist(client.create_model_version, base.name, source, run_id, **told))


def put_in_place(version: Registered, base: Registered) -> Outcome:
    """Make a version with more rows champion in the stead of the one that it was made from.

    Not if another version has become champion meanwhile, and not again if it was rolled back.
    """
    client = connect()
    try:
        aliases.claim(client, base.name, version.version, base.version, version.run_id, aliases.GREW)
    except aliases.ChampionMovedError:
        return Outcome.MOVED
    champion = aliases.settle(client, base.name)[-1].version
    return Outcome.ADDED if champion == version.version else Outcome.ROLLED_BACK


def _run_of(version: Registered) -> str:
    """MLflow's id of the run that trained a version."""
    if version.mlflow_run is None:
        raise UserError(f"{version.name} version {version.version} belongs to no run, and so no checkpoint is known")
    return version.mlflow_run
