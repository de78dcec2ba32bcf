"""A folder that holds the registered versions that are to be served: how a service without MLflow follows the registry.

`<folder>/<version>/` is a version's bundle; `<folder>/aliases.json` says which version each alias points at, and is
written last. Whoever serves looks at the folder alone, and so outlives the registry.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from components.registry import aliases
from components.registry.client import fetch, model_name, registered
from components.registry.connection import connect
from components.run import read_json, write_json

log = logging.getLogger("tandem.registry")

ALIASES = "aliases.json"
FOLLOWED = (aliases.CHAMPION, aliases.CANDIDATE)
#: Versions that stay in the folder although no alias points at them: a rollback then needs no download.
SPARE = 3


def mirror(dataset: str, folder: Path, pinned: str | None = None) -> dict[str, str | None]:
    """Make the folder hold what the aliases of a data set's model point at now.

    Args:
        dataset: Name of a data set, or path of its DatasetSpec.
        folder: The mirror; made if it is not there.
        pinned: A version that is to be there whatever the aliases say.

    Returns:
        The version of each alias; None where it points nowhere.

    Raises:
        RuntimeError: a version's files cannot be fetched; aliases.json is as it was.
        MlflowException: the registry does not answer.
    """
    client, name = connect(), model_name(dataset)
    pointed = {alias: aliases.alias_version(client, name, alias) for alias in FOLLOWED}
    for version in {version for version in (*pointed.values(), pinned) if version}:
        if not (folder / version).is_dir():
            fetch(registered(client.get_model_version(name, version)), folder / version)
            log.info("%s version %s fetched", name, version)
    if pointed != read_aliases(folder):
        write_json(folder / ALIASES, pointed)
        log.info("%s: champion is version %s", name, pointed[aliases.CHAMPION])
    _tidy(folder, {*pointed.values(), pinned})
    return pointed


def read_aliases(folder: Path) -> dict[str, Any]:
    """What `mirror` has written; empty before it has."""
    path = folder / ALIASES
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _tidy(folder: Path, needed: set[str | None]) -> None:
    spare = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit() and path.name not in needed]
    for path in sorted(spare, key=lambda path: path.stat().st_mtime)[:-SPARE]:
        shutil.rmtree(path, ignore_errors=True)
