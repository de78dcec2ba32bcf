"""Feast entities, views and the feature service of a data set, built from its DatasetSpec."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from components.dataset.features import features_digest
from components.dataset.lean import lean
from components.dataset.spec import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_KEY,
    USER_KEY,
    DatasetSpec,
    FieldSpec,
    Kind,
    Source,
)
from feature_repo.activity import ACTIVITY
from feature_repo.context import context_view
from feature_repo.history import HISTORY_TABLE, history_columns, liked_column

with lean():
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float64, Int64, String

#: Key column and published table of each side that has a profile.
SIDES = {"user": (USER_KEY, "users"), "item": (ITEM_KEY, "items")}
HISTORY_VIEW = "user_history"
#: Push sources of live events, by the view that they change.
PUSHED = {HISTORY_VIEW: "user_events", ACTIVITY["user"]: "user_counts"}


@dataclass(frozen=True)
class Definitions:
    """What Feast is told about a data set: `views` are stored, `on_demand` ones computed from a request."""

    entities: tuple[Any, ...]
    views: tuple[Any, ...]
    on_demand: tuple[Any, ...]
    service: Any

    @property
    def objects(self) -> list[Any]:
        """All of them, as `FeatureStore.apply` wants them."""
        return [*self.entities, *self.views, *self.on_demand, self.service]

    @property
    def features(self) -> tuple[str, ...]:
        """Columns that a retrieval adds, in the views' order."""
        return tuple(field.name for view in (*self.views, *self.on_demand) for field in view.features)

    @property
    def digest(self) -> str:
        """SHA-256 over what the features are and mean, and not over where they lie."""
        return features_digest(self.service.name, (*self.views, *self.on_demand))


def build(spec: DatasetSpec, offline: Path) -> Definitions:
    """The definitions of a data set over the tables that `feature_repo.store.publish` wrote to `offline`.

    The fields of a side are the features of its view (`user_profile`, `item_profile`: one row per user or item and
    time); an id field is the view's key and no feature; a side without fields has no view. A spec with a history
    has `user_history`: one row per user and moment after an event. A spec with an activity has `user_activity` and
    `item_statistics`: one row per user or item and moment at which a count changes. Live events enter the first two
    of these three through push sources. Item statistics wait for the next materialisation: an item's numbers are those
    of all users' events, so that bringing one up to an event costs what the item has had in its longest window.

    A spec with a moment has the on-demand view `request_context`, computed from the request's own time stamp. The other
    context of a request is no view: its fields are columns of the impressions and values that a caller sends.

    Args:
        spec: the data set.
        offline: folder of the published tables.
    """
    entities = {side: _entity(side, key) for side, (key, _) in SIDES.items()}
    views = [_profile(spec, side, entities[side], offline) for side in SIDES if profile_fields(spec, side)]
    if spec.history is not None:
        views.append(_history(spec, entities["user"], offline))
    views += [_activity(spec, side, entities[side], offline) for side in SIDES if spec.activity_fields(side)]
    on_demand = [context_view(spec)] if spec.moment else []
    service = FeatureService(name=f"ctr_{spec.identifier}", features=[*views, *on_demand])
    return Definitions(tuple(entities.values()), tuple(views), tuple(on_demand), service)


def feature_service_hash(spec: DatasetSpec) -> str:
    """The digest of the definitions of a data set, whatever its tables hold.

    A served model names the hash of its features, and so a service can tell that the features have changed.
    """
    return build(spec, Path()).digest


def profile_fields(spec: DatasetSpec, side: str) -> tuple[FieldSpec, ...]:
    """The fields that the view of a side holds."""
    return tuple(field for field in spec.of_side(side) if field.kind is not Kind.ID)


def has_created(spec: DatasetSpec, side: str) -> bool:
    """Whether the table of a side says when each of its rows became known."""
    source = _source(spec, side)
    return source is not None and source.created is not None


def is_dated(spec: DatasetSpec, view: str) -> bool:
    """Whether a view's rows have time stamps of events; undated tables hold from 1970 on."""
    tables = {"user_profile": spec.sources.users, "item_profile": spec.sources.items}
    source = tables.get(view)
    return view not in tables or (source is not None and source.timestamp is not None)


def _source(spec: DatasetSpec, side: str) -> Source | None:
    return spec.sources.users if side == "user" else spec.sources.items


def _entity(side: str, key: str) -> Any:
    return Entity(name=side, join_keys=[key], value_type=ValueType.STRING)


def _profile(spec: DatasetSpec, side: str, entity: Any, offline: Path) -> Any:
    _, table = SIDES[side]
    fields = [Field(name=field.name, dtype=_type(field.kind)) for field in profile_fields(spec, side)]
    created = CREATED_TIMESTAMP if has_created(spec, side) else ""
    source = _source(spec, side)
    # Of zero days: for ever.
    ttl = timedelta(days=(source.ttl_days or 0) if source is not None else 0)
    return _view(f"{side}_profile", entity, fields, offline / f"{table}.parquet", created, ttl, {})


def _history(spec: DatasetSpec, entity: Any, offline: Path) -> Any:
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    liked = liked_column(spec)
    columns = [*history_columns(spec), *([liked] if liked else [])]
    types = {None: Int64, Kind.NUMBER: Float64}
    fields = [Field(name=column.name, dtype=Array(types.get(column.kind, String))) for column in columns]
    tags = {"length": str(spec.history.length), "events": spec.history.events}
    path = offline / f"{HISTORY_TABLE}.parquet"
    return _view(HISTORY_VIEW, entity, fields, path, "", timedelta(0), tags)


def _activity(spec: DatasetSpec, side: str, entity: Any, offline: Path) -> Any:
    fields = [Field(name=field.name, dtype=Float64) for field in spec.activity_fields(side)]
    name = ACTIVITY[side]
    return _view(name, entity, fields, offline / f"{name}.parquet", "", timedelta(0), {"events": "all"})


def _view(
    name: str,
    entity: Any,
    fields: list[Any],
    path: Path,
    created: str,
    ttl: timedelta,
    tags: dict[str, str],
) -> Any:
    # A source keeps its name while its path changes with its content; else each run would leave one in the registry.
    source: Any = FileSource(
        name=f"{name}_source", path=str(path), timestamp_field=EVENT_TIMESTAMP, created_timestamp_column=created
    )
    if name in PUSHED:
        source = PushSource(name=PUSHED[name], batch_source=source)
    key = Field(name=entity.join_key, dtype=String)
    return FeatureView(name=name, entities=[entity], schema=[key, *fields], source=source, ttl=ttl, tags=tags)


def _type(kind: Kind) -> Any:
    return {Kind.MULTI: Array(String), Kind.NUMBER: Float64}.get(kind, String)
