"""Feast's online store, view by view: values with the moment from which they hold, and no more of Feast than that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from components.dataset.features import features_digest, is_on_demand
from components.dataset.lean import lean
from components.dataset.spec import ITEM_KEY, USER_KEY
from serving.direct import RedisRows, plain

Row = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """A feature view: its names, the side whose key it has, and the age in seconds at which its values expire."""

    name: str
    side: str
    features: tuple[str, ...]
    ttl: float | None
    definition: Any


@dataclass(frozen=True)
class Stored:
    """A key's values in a view, and the Unix time in seconds of the event that they are from."""

    row: Row
    at: float


@dataclass(frozen=True)
class Registered:
    """What the feature registry says of a feature service."""

    views: tuple[View, ...]
    digest: str
    #: The last materialisation of any view of items.
    materialised: datetime | None


class OnlineStore:
    """Reads of one feature service.

    Feast's `get_online_features` hides the age of what it finds, and spends 60 microseconds on each row; its stores
    themselves have neither fault.

    Args:
        config: feature_store.yaml.
        service: The feature service.
        deadline: Seconds after which a Redis socket gives up.

    Raises:
        Exception: the registry cannot be read, or has no such service; Feast has many ways to say so.
    """

    def __init__(self, config: Path, service: str, deadline: float) -> None:
        with lean():
            from feast import FeatureStore
            from feast.infra.online_stores.helpers import get_online_store_from_config

        self._store: Any = FeatureStore(fs_yaml_file=config)
        self._service = service
        online = self._store.config.online_store
        if online.type == "redis":
            online.connection_string = impatient(online.connection_string, deadline)
        self._online = get_online_store_from_config(online)
        self._rows = RedisRows.of(self._online, self._store.config) if online.type == "redis" else None

    @property
    def direct(self) -> bool:
        """Whether `read_soon` works with this store."""
        return self._rows is not None

    def registered(self, refresh: bool = False) -> Registered:
        """What the registry says now, with `refresh`, or when it was read last."""
        if refresh:
            self._store.refresh_registry()
        service = self._store.get_feature_service(self._service)
        # Definitions alone: a view read by its name could hold a function, which Feast would run.
        held = self._store.registry.list_all_feature_views(self._store.project, allow_cache=True, skip_udf=True)
        known = {view.name: view for view in held}
        definitions = [known[shown.name] for shown in service.feature_view_projections]
        views = tuple(_view(one) for one in definitions if not is_on_demand(one))
        ends = [end for view in views if view.side == "item" for _, end in view.definition.materialization_intervals]
        return Registered(views, features_digest(service.name, definitions), max(ends, default=None))

    def read(self, view: View, keys: Sequence[str]) -> list[Stored | None]:
        """The values of each key, None for those that the view does not hold.

        Raises:
            Exception: the store did not answer; each store has its own way to say so.
        """
        asked = [_entity(view, key) for key in keys]
        found = self._online.online_read(self._store.config, view.definition, asked, list(view.features))
        return [_stored(view, at, values) for at, values in found]

    async def read_soon(self, views: Sequence[View], keys: Sequence[str]) -> list[list[Stored | None]]:
        """What `read` gives for each of some views of one side, without a thread; only where `direct`.

        Raises:
            Exception: the store did not answer.
        """
        assert self._rows is not None  # noqa: S101 - the caller's condition, for the type checker
        asked = [(view.definition, view.features) for view in views]
        found = await self._rows.read(asked, _entity(views[0], ""), keys)
        return [[_held(*one) for one in read] for read in found]

    def give_up(self) -> None:
        """Leave the connection by which `read_soon` asks, and open another one when it asks again."""
        if self._rows is not None:
            self._rows.line.close()


def impatient(connection: str, deadline: float) -> str:
    """A connection string of Feast's with socket timeouts and without redis-py's retries, which sleep for seconds."""
    given = {part.partition("=")[0] for part in connection.split(",")}
    wanted = {"socket_timeout": deadline, "socket_connect_timeout": deadline, "retry": "null"}
    return ",".join([connection, *(f"{name}={value}" for name, value in wanted.items() if name not in given)])


def _entity(view: View, key: str) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    name = USER_KEY if view.side == "user" else ITEM_KEY
    return EntityKey(join_keys=[name], entity_values=[Value(string_val=key)])


def _view(definition: Any) -> View:
    side = "user" if definition.entity_columns[0].name == USER_KEY else "item"
    ttl = definition.ttl.total_seconds() if definition.ttl else 0.0
    return View(definition.name, side, tuple(field.name for field in definition.features), ttl or None, definition)


def _stored(view: View, at: datetime | None, values: Mapping[str, Any] | None) -> Stored | None:
    row = {name: plain((values or {}).get(name)) for name in view.features}
    return None if at is None else _held(row, at.timestamp())


def _held(row: Row, at: float) -> Stored | None:
    # Redis answers for a key that it does not hold as for one whose values of 1970 are all null.
    if at <= 0 and all(value is None for value in row.values()):
        return None
    return Stored(row, at)
