"""The feature store of a data set: opened, told the definitions, filled, and read back."""

# ruff: noqa: S608 - a key column and a constant
from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from feast import FeatureStore, RepoConfig

from components.dataset.spec import DatasetSpec
from components.run import aside
from feature_repo.asof import FeatureTable, latest_query, session
from feature_repo.definitions import SIDES, Definitions, build
from feature_repo.environment import feast_home, render, write_config
from feature_repo.locks import alone
from feature_repo.publish import publish

#: No value is older: tables without time stamps of their own hold from 1970 on, others may reach further back.
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
#: Keys of each view that are read back after it was materialised.
SAMPLE = 200

__all__ = ["apply", "materialise", "online_rows", "open_store", "publish", "training_store"]


def open_store(spec: DatasetSpec) -> Any:
    """The shared Feast store of the environment, in the data set's own project.

    Its configuration is written to home()/feast/<identifier>.yaml for readers of the online store, and to
    feature_store.yaml beside it, which names the project that was opened last.

    Raises:
        UserError: the environment is unknown or lacks a variable, or its SQL registry is not in PostgreSQL.
    """
    content = render(spec)
    for name in (spec.identifier, "feature_store"):
        write_config(spec, feast_home() / f"{name}.yaml")
    store = FeatureStore(config=RepoConfig(**content))
    if store.config.registry.registry_type == "sql":
        with alone(store.config.registry, "schema"):
            _ = store.registry  # makes the tables where there are none
    return store


@contextmanager
def training_store(spec: DatasetSpec, definitions: Definitions) -> Iterator[Any]:
    """A store for one retrieval, with the environment's offline store and a registry of its own.

    The shared registry describes what is served. A run that trains on changed definitions must not change it before
    its model is promoted, and runs at the same time must not see each other's definitions.
    """
    with TemporaryDirectory(prefix="tandem-feast-") as folder:
        registry = {"registry_type": "file", "path": f"{folder}/registry.db"}
        online = {"type": "sqlite", "path": f"{folder}/online.db"}
        store = FeatureStore(config=RepoConfig(**{**render(spec), "registry": registry, "online_store": online}))
        store.apply(definitions.objects)
        yield store


def apply(store: Any, spec: DatasetSpec, validated: Path) -> Definitions:
    """Publish the validated tables and make their definitions those of the shared store.

    Views of the project that the spec no longer has are removed with their online rows.

    Raises:
        UserError: `validated` lacks a table.
    """
    definitions = build(spec, publish(spec, validated))
    names = {view.name for view in definitions.views}
    with _changing(store) as draft:
        stale = [view for view in draft.list_feature_views() if view.name not in names]
        draft.apply(definitions.objects, objects_to_delete=stale, partial=False)
    return definitions


def materialise(store: Any, spec: DatasetSpec, end: datetime | None = None) -> dict[str, int]:
    """Copy each key's latest values up to `end` to the online store, and read a sample of them back.

    Without `end`, and for one in the future, it is now: a later end would make Feast skip what arrives until then.

    Returns:
        Keys by view.

    Raises:
        RuntimeError: a value read back is not the table's.
    """
    now = datetime.now(UTC)
    until = min(end or now, now)
    with _changing(store) as draft, redirect_stdout(sys.stderr):
        views = draft.list_feature_views()
        if views:
            draft.materialize(BEGINNING, until, feature_views=[view.name for view in views])
    return {view.name: _verified(store, spec, view, until) for view in views}


def online_rows(store: Any, spec: DatasetSpec, side: str, keys: Sequence[str]) -> dict[str, list[Any]]:
    """The online features of users or items as columns, in the order of their ids `keys`; None where there are none."""
    views = [view for view in build(spec, Path()).views if view.entities == [side]]
    features = [f"{view.name}:{field.name}" for view in views for field in view.features]
    return _online(store, SIDES[side][0], features, keys)


def _online(store: Any, key: str, features: list[str], keys: Sequence[str]) -> dict[str, list[Any]]:
    if not features or not keys:
        return {key: list(keys)} | {feature.split(":")[1]: [] for feature in features}
    rows: dict[str, list[Any]] = store.get_online_features(features, [{key: value} for value in keys]).to_dict()
    return rows


@contextmanager
def _changing(store: Any) -> Iterator[Any]:
    """A store that may change the registry, alone; readers see the old registry or the new one, nothing between.

    Feast writes a file registry in place; in an SQL registry each object is a transaction of its own.
    """
    registry = store.config.registry
    with alone(registry, store.project):
        if registry.registry_type != "file":
            yield store
        else:
            path = Path(registry.path)
            with aside(path) as draft:
                if path.exists():
                    shutil.copyfile(path, draft)
                content = store.config.model_dump(by_alias=True, exclude_unset=True)
                content["registry"] = {**content["registry"], "path": str(draft)}
                yield FeatureStore(config=RepoConfig(**content))
    store.refresh_registry()


def _verified(store: Any, spec: DatasetSpec, view: Any, until: datetime) -> int:
    """Keys of a view, after a sample of them was read back from the online store."""
    key = view.entity_columns[0].name
    names = [field.name for field in view.features]
    count, expected = _latest(view, key, names, until)
    found = _online(store, key, [f"{view.name}:{name}" for name in names], expected[key])
    for name in names:
        for place, (value, online) in enumerate(zip(expected[name], found[name], strict=True)):
            if not _same(value, online):
                raise RuntimeError(
                    f"online store of {spec.identifier}: {view.name}.{name} of {key} '{expected[key][place]}' is "
                    f"{online!r}, but the table says {value!r}"
                )
    return count


def _latest(view: Any, key: str, names: list[str], until: datetime) -> tuple[int, Mapping[str, list[Any]]]:
    """The number of keys with a value at `until`, and the values of a sample of them."""
    source = view.batch_source
    created = source.created_timestamp_column or None
    table = FeatureTable(source.path, {key: key}, names, source.timestamp_field, created)
    with session() as connection:
        connection.execute(f"CREATE TEMP TABLE latest AS {latest_query(table, BEGINNING, until)}")
        count: int = connection.execute("SELECT count(*) FROM latest").fetchall()[0][0]
        sample = connection.sql(f"SELECT * FROM latest ORDER BY hash({key}) LIMIT {SAMPLE}").to_arrow_table()
    return count, sample.to_pydict()


def _same(value: Any, online: Any) -> bool:
    if isinstance(value, list) and isinstance(online, list):
        return len(value) == len(online) and all(map(_same, value, online))
    if isinstance(value, float) and isinstance(online, float):
        return value == online or (math.isnan(value) and math.isnan(online))
    # Feast keeps no difference between an empty list and none.
    return bool(value == online) or (value in ([], None) and online in ([], None))
