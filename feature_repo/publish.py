"""The validated tables as the offline store's files: named by their content, and never changed."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from components.dataset.errors import UserError
from components.dataset.spec import CREATED_TIMESTAMP, EVENT_TIMESTAMP, DatasetSpec
from components.run import aside, home
from feature_repo.activity import ACTIVITY, EVENTS_TABLE, activity_query, events_query
from feature_repo.asof import literal, quoted, scan
from feature_repo.definitions import SIDES, has_created, profile_fields
from feature_repo.engine import engine_of
from feature_repo.environment import offline_store
from feature_repo.history import HISTORY_TABLE, history_query

#: Raise this when the published files change for the same input.
FORMAT = 4


def publish(spec: DatasetSpec, validated: Path) -> Path:
    """Copy what the feature views read to home()/offline/<identifier>/<digest>, and return that folder.

    The folder's name is the digest of the spec and of the validated files, so that publishing twice does nothing
    and a run never reads tables that another run has replaced. Of rows with the same key, time stamp and creation
    time the last in the file counts. History and activity are computed here, by the engine of the environment.

    Raises:
        UserError: `validated` lacks a table.
    """
    folder = home() / "offline" / spec.identifier / _digest(spec, validated)
    if not folder.is_dir():
        engine = engine_of(offline_store(spec))
        with aside(folder) as draft:
            draft.mkdir()
            for name, query in _queries(spec, validated, draft):
                engine.write(query, draft / f"{name}.parquet", "zstd")
    return folder


def validated_file(validated: Path, table: str) -> Path:
    """The file of a validated table.

    Raises:
        UserError: there is none.
    """
    path = validated / f"{table}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder that the validate step wrote for this data set")
    return path


def dataset_digest(validated: Path) -> str:
    """SHA-256 over the validated tables."""
    digests = {path.name: _file_digest(path) for path in sorted(validated.glob("*.parquet"))}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _digest(spec: DatasetSpec, validated: Path) -> str:
    content = json.dumps([FORMAT, spec.digest, dataset_digest(validated)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _queries(spec: DatasetSpec, validated: Path, published: Path) -> Iterator[tuple[str, str]]:
    impressions = validated_file(validated, "impressions")
    for side, (key, table) in SIDES.items():
        if profile_fields(spec, side):
            yield table, _profile_query(spec, side, validated_file(validated, table))
        if spec.activity_fields(side):
            yield ACTIVITY[side], activity_query(spec, side, key, scan(impressions))
    if spec.activity_fields("user"):
        yield EVENTS_TABLE, events_query(spec, scan(impressions))
    if spec.history is not None:
        # The published items, since only there no two rows of an item are equally new.
        items = published / f"{SIDES['item'][1]}.parquet"
        yield HISTORY_TABLE, history_query(spec, impressions, items)


def _profile_query(spec: DatasetSpec, side: str, path: Path) -> str:
    key, _ = SIDES[side]
    times = [EVENT_TIMESTAMP, *([CREATED_TIMESTAMP] if has_created(spec, side) else [])]
    fields = ", ".join(quoted(field.name) for field in profile_fields(spec, side))
    stamps = ", ".join(f"{time}::TIMESTAMPTZ AS {time}" for time in times)
    same = ", ".join([key, *times])
    return (
        f"SELECT {key}, {stamps}, {fields} FROM read_parquet({literal(path)}, file_row_number = true)"
        f" QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY file_row_number DESC) = 1 ORDER BY {same}"
    )
