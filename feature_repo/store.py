"""The feature store of a data set: opened, told the definitions, and read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from components.dataset.lean import lean
from components.dataset.moment import EPOCH
from components.dataset.spec import DatasetSpec
from components.run import aside
from feature_repo.context import on_demand_views, refuse_code
from feature_repo.definitions import SIDES, Definitions, build
from feature_repo.environment import feast_home, render, write_config
from feature_repo.locks import alone
from feature_repo.publish import publish

with lean():
    from feast import FeatureStore, RepoConfig
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

__all__ = ["apply", "changing", "online_rows", "open_store", "publish", "row_times", "training_store"]

#: Keys that are asked for in one question: SQLite knows a limit.
AT_ONCE = 10_000


def open_store(spec: DatasetSpec) -> Any:
    """The shared Feast store of the environment, in the data set's own project.

    Its configuration is written to home()/feast/<identifier>.yaml for readers of the online store, and to
    feature_store.yaml beside it, which names the project that was opened last.

    Raises:
        UserError: the environment is unknown or lacks a variable, its SQL registry is not in PostgreSQL, or the
            registry holds code.
    """
    content = render(spec)
    for name in (spec.identifier, "feature_store"):
        write_config(spec, feast_home() / f"{name}.yaml")
    online = content["online_store"]
    if isinstance(online, dict) and online["type"] == "redis":
        # Feast's Redis store passes over what is no newer than what it holds: corrected values, and late events.
        online["skip_dedup"] = True
    store = FeatureStore(config=RepoConfig(**content))
    if store.config.registry.registry_type == "sql":
        with alone(store.config.registry, "schema"):
            _ = store.registry  # makes the tables where there are none
    refuse_code(store)
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
    names = {view.name for view in (*definitions.views, *definitions.on_demand)}
    with changing(store) as draft:
        refuse_code(draft)
        known = [*draft.list_feature_views(), *on_demand_views(draft)]
        stale = [view for view in known if view.name not in names]
        draft.apply(definitions.objects, objects_to_delete=stale, partial=False)
    return definitions


def online_rows(store: Any, spec: DatasetSpec, side: str, keys: Sequence[str]) -> dict[str, list[Any]]:
    """The online features of users or items as columns, in the order of their ids `keys`; None where there are none."""
    views = [view for view in build(spec, Path()).views if view.entities == [side]]
    features = [f"{view.name}:{field.name}" for view in views for field in view.features]
    if not features or not keys:
        return {SIDES[side][0]: list(keys)} | {feature.split(":")[1]: [] for feature in features}
    rows: dict[str, list[Any]] = store.get_online_features(
        features, [{SIDES[side][0]: value} for value in keys]
    ).to_dict()
    return rows


def row_times(store: Any, view: Any, keys: Sequence[str]) -> list[datetime | None]:
    """The time stamps of the online rows of a view, to the microsecond, None where there is no row.

    Feast's own answer has seconds only, in which a user may have several events.
    """
    name, first, config = view.entity_columns[0].name, view.features[0].name, store.config
    provider = store._get_provider()
    found: list[datetime | None] = []
    for start in range(0, len(keys), AT_ONCE):
        asked = [
            EntityKey(join_keys=[name], entity_values=[Value(string_val=key)]) for key in keys[start : start + AT_ONCE]
        ]
        times = (time for time, _ in provider.online_read(config, view, asked, [first]))
        # Redis gives 1970 for a row that is not there, SQLite nothing.
        found += [time if time is not None and time > EPOCH else None for time in times]
    return found


@contextmanager
def changing(store: Any) -> Iterator[Any]:
    """A store that may change the registry, alone; readers see the old registry or the new one, nothing between.

    Feast writes a file registry in place; in an SQL registry each object is a transaction of its own.
    """
    registry = store.config.registry
    with alone(registry, "registry" if registry.registry_type == "file" else store.project):
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
