"""Bring the online store up to the tables: what has changed, in pieces, seen to have arrived."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from components.dataset.lean import lean
from components.dataset.spec import CREATED_TIMESTAMP, EVENT_TIMESTAMP, DatasetSpec
from components.run import read_json, write_json
from feature_repo.activity import ACTIVITY, ENTERED
from feature_repo.asof import FeatureTable, latest_query, literal, quoted, scan, session
from feature_repo.counts import PushedEvents, counts, spent
from feature_repo.definitions import SIDES, has_created, is_dated, profile_fields
from feature_repo.engine import memory_limit
from feature_repo.environment import feast_home, offline_store
from feature_repo.locks import alone, writing
from feature_repo.publish import publish
from feature_repo.store import apply, changing, open_store, row_times

with lean():
    from feast import FeatureStore, FeatureView, FileSource, RepoConfig

log = logging.getLogger("tandem.materialise")

#: No value is older: tables without time stamps of their own hold from 1970 on, others may reach further back.
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
#: Keys of each view that are read back after it was materialised.
SAMPLE = 200
#: Keys written between two notes of how far it has come, for which a push has to wait.
PIECE = 20_000


@dataclass(frozen=True)
class Materialised:
    """What a view's online rows are now.

    keys: users or items that have a value; written: those whose values were written now; newest: the last event
    that the values know of, None where the view's table has no time stamps of its own.
    """

    keys: int
    written: int
    newest: datetime | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON content."""
        return {**asdict(self), "newest": self.newest.isoformat() if self.newest else None}

    def age(self, at: datetime) -> float | None:
        """Seconds by which the newest event lies before a moment."""
        return (at - self.newest).total_seconds() if self.newest else None


@dataclass(frozen=True)
class _Source:
    """A view's published table as of a moment."""

    path: str
    until: datetime

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "until": self.until.isoformat()}

    @classmethod
    def from_json(cls, content: Mapping[str, str]) -> _Source:
        return cls(content["path"], datetime.fromisoformat(content["until"]))


class _Notes:
    """What has been written to this online store, in a file: whole tables, and pieces of one under way."""

    def __init__(self, store: Any) -> None:
        online = store.config.online_store.model_dump_json()
        digest = hashlib.sha256(online.encode()).hexdigest()[:8]
        self.path = feast_home() / "materialised" / f"{store.project}-{digest}.json"
        self.views: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    def of(self, view: Any) -> dict[str, Any]:
        """The notes on a view, none if its features have changed since."""
        features = [[field.name, str(field.dtype)] for field in view.features]
        found = self.views.get(view.name, {})
        return found if found.get("features") == features else {"features": features}

    def keep(self, view: Any, content: dict[str, Any]) -> None:
        self.views[view.name] = content
        write_json(self.path, self.views)


def materialised_folder(store: Any, view: str) -> Path | None:
    """The folder of the published tables that the online rows of a view are of; None where none is there."""
    known = _Notes(store).views.get(view, {})
    source = known.get("under_way") or known.get("done")
    path = Path(source["path"]) if source else None
    return path.parent if path is not None and path.exists() else None


def refresh(
    spec: DatasetSpec, validated: Path, end: datetime | None = None, full: bool = False
) -> dict[str, Materialised]:
    """Make the validated tables those of the shared store of the environment, and materialise them.

    Raises:
        UserError: `validated` lacks a table, or the environment is not as `open_store` wants it.
        RuntimeError: a value read back is not the table's.
    """
    store = open_store(spec)
    apply(store, spec, validated)
    return materialise(store, spec, end, full)


def materialise(
    store: Any, spec: DatasetSpec, end: datetime | None = None, full: bool = False
) -> dict[str, Materialised]:
    """Write each key's latest values up to `end` to the online store, and read a sample of them back.

    Only the keys are written whose values differ from those of the tables and the moment that were materialised
    last, whatever the time stamps of what has changed: late and corrected values are found too. What was interrupted
    is finished first. With `full`, and where a sample does not read as it should, every key is written. A key that has
    left its table keeps its online row. Pushed events stay: a history that is later than the table's is left as it is,
    and a user's counts are made anew of the log and of what was pushed, until the log knows it.

    Without `end`, and for one in the future, it is now: a later end would make Feast skip what arrives until then.
    How old the data are is written to home()/feast/<identifier>-age.json.

    Raises:
        RuntimeError: a value read back is not the table's, although every key was written.
    """
    now = datetime.now(UTC)
    until = min(end or now, now)
    with alone(store.config.registry, f"materialise_{store.project}"):
        notes = _Notes(store)
        views = store.list_feature_views()
        done = {view.name: _bring_up(store, spec, view, until, notes, full) for view in views}
        _tell_registry(store, views, until)
    write_json(_age_file(spec), {name: view.to_json() for name, view in done.items()})
    return done


def latest_profiles(spec: DatasetSpec, validated: Path, side: str, end: datetime | None = None) -> pa.Table | None:
    """The users or items of the validated tables with their profile's values at a moment, as they are materialised.

    Args:
        spec: The data set.
        validated: The validate step's tables.
        side: user or item.
        end: The moment; now if None or in the future.

    Returns:
        The key and each field; None for a side without a profile.
    """
    if not profile_fields(spec, side):
        return None
    key, name = SIDES[side]
    now = datetime.now(UTC)
    fields = [field.name for field in profile_fields(spec, side)]
    created = CREATED_TIMESTAMP if has_created(spec, side) else None
    table = FeatureTable(
        str(publish(spec, validated) / f"{name}.parquet"), {key: key}, fields, EVENT_TIMESTAMP, created
    )
    with session(memory_limit(offline_store(spec))) as connection:
        found = connection.sql(latest_query(table, BEGINNING, min(end or now, now))).to_arrow_table()
    return found.select([key, *fields]).sort_by(key)


def data_age(spec: DatasetSpec, at: datetime | None = None) -> dict[str, float | None]:
    """Seconds by which the newest event that each view's online values know of lies before `at` (now if not given).

    This is the age of the data: materialising an old log anew does not make it younger. None for a view whose table
    has no time stamps of its own. Empty if nothing was materialised yet.
    """
    path, at = _age_file(spec), at or datetime.now(UTC)
    said: dict[str, Any] = read_json(path) if path.is_file() else {}
    newest = {name: view["newest"] for name, view in said.items()}
    return {
        name: (at - datetime.fromisoformat(time)).total_seconds() if time else None for name, time in newest.items()
    }


def _age_file(spec: DatasetSpec) -> Path:
    return feast_home() / f"{spec.identifier}-age.json"


def _bring_up(store: Any, spec: DatasetSpec, view: Any, until: datetime, notes: _Notes, full: bool) -> Materialised:
    target, known = _Source(view.batch_source.path, until), notes.of(view)
    written, base = 0, _base(known)
    under_way = known.get("under_way")
    if full:
        base = None
    elif under_way and _can_resume(under_way, target):
        resumed, of = _Source.from_json(under_way), under_way["base"]
        log.info("%s: goes on after piece %d of %d", view.name, under_way["written"], under_way["pieces"])
        written = _write(store, spec, view, resumed, of and _Source.from_json(of), notes, under_way)
        base = resumed
    elif under_way:
        base = None  # pieces of another table were written: nobody knows what each key has now
    written += _write(store, spec, view, target, base, notes)
    wrong = _wrong_value(store, spec, view, target)
    if wrong and base is not None:
        log.warning("%s, although nothing of it has changed: writing every key of %s", wrong, view.name)
        written = _write(store, spec, view, target, None, notes)
        wrong = _wrong_value(store, spec, view, target)
    if wrong:
        notes.keep(view, {"features": known["features"]})
        raise RuntimeError(f"online store of {spec.identifier}: {wrong}")
    keys, newest = _extent(view, target)
    return Materialised(keys, written, newest if is_dated(spec, view.name) else None)


def _base(known: Mapping[str, Any]) -> _Source | None:
    """What the online store holds for certain, where its table is still there to compare with."""
    base = _Source.from_json(known["done"]) if known.get("done") else None
    return base if base and Path(base.path).exists() else None


def _can_resume(under_way: Mapping[str, Any], target: _Source) -> bool:
    of = under_way["base"]
    return under_way["path"] == target.path and (of is None or Path(of["path"]).exists())


def _write(
    store: Any,
    spec: DatasetSpec,
    view: Any,
    target: _Source,
    base: _Source | None,
    notes: _Notes,
    under_way: Mapping[str, Any] | None = None,
) -> int:
    """Write the keys whose values differ from the base's, piece by piece, and note each; their number."""
    key = view.entity_columns[0].name
    with _session(store) as connection, _writer(store, view) as (piece_file, flush):
        connection.execute(f"CREATE TEMP TABLE changed AS {_changed(view, target, base)}")
        count, written = connection.execute("SELECT count(*) FROM changed").fetchall()[0][0], 0
        pieces = under_way["pieces"] if under_way else math.ceil(count / PIECE)
        known = {**notes.of(view)}
        for piece in range(under_way["written"] if under_way else 0, pieces):
            note = {**target.to_json(), "base": base and base.to_json(), "pieces": pieces, "written": piece}
            notes.keep(view, {**known, "under_way": note})
            query = f"SELECT * FROM changed WHERE hash({quoted(key)}) % {pieces} = {piece}"
            with writing(store):
                rows = _without_pushed(store, spec, view, connection.sql(query).to_arrow_table())
                if rows.num_rows:
                    pq.write_table(rows, piece_file)
                    flush(target.until)
            written += rows.num_rows
            if pieces > 1:
                log.info("%s: piece %d of %d written", view.name, piece + 1, pieces)
        if view.name == ACTIVITY["user"]:
            written += _write_pushed(store, spec, Path(target.path).parent, piece_file, flush)
    notes.keep(view, {"features": known["features"], "done": target.to_json()})
    return written


def _write_pushed(store: Any, spec: DatasetSpec, published: Path, piece_file: Path, flush: Any) -> int:
    """Write the counts, as of now, of the users whose events were pushed; forget the events that need no more of it."""
    pushed, written = PushedEvents(spec), 0
    with writing(store):
        users = pushed.users()
    for start in range(0, len(users), PIECE):
        some, at = users[start : start + PIECE], datetime.now(UTC)
        with writing(store):
            events = pushed.of(some)
            rows = counts(spec, published, events, some, at)
            if rows.num_rows:
                pq.write_table(rows, piece_file)
                flush(at)
            pushed.drop(spent(spec, published, events, at))
        written += rows.num_rows
    return written


def _session(store: Any) -> Any:
    return session(memory_limit(store.config.offline_store))


def _table(view: Any, path: str) -> FeatureTable:
    source, key = view.batch_source, view.entity_columns[0].name
    names = [field.name for field in view.features]
    return FeatureTable(path, {key: key}, names, source.timestamp_field, source.created_timestamp_column or None)


def _latest(view: Any, source: _Source) -> str:
    columns = [view.entity_columns[0].name, view.batch_source.timestamp_field, *(field.name for field in view.features)]
    latest = latest_query(_table(view, source.path), BEGINNING, source.until)
    return f"SELECT {', '.join(map(quoted, columns))} FROM ({latest})"


def _changed(view: Any, target: _Source, base: _Source | None) -> str:
    return _latest(view, target) + (f" EXCEPT {_latest(view, base)}" if base else "")


@contextmanager
def _writer(store: Any, view: Any) -> Iterator[Any]:
    """A Parquet file for rows of a view, and the function that has Feast write them to the shared online store.

    Feast materialises a view's whole source. Here the source is the file, in a registry of its own that nobody reads.
    """
    with TemporaryDirectory(prefix="tandem-materialise-") as folder:
        path = Path(folder, "piece.parquet")
        content = store.config.model_dump(by_alias=True, exclude_unset=True)
        registry = {"registry_type": "file", "path": f"{folder}/registry.db"}
        offline = {"type": "feature_repo.offline.AsofOfflineStore"}
        writer = FeatureStore(config=RepoConfig(**{**content, "registry": registry, "offline_store": offline}))
        entity = store.get_entity(view.entities[0])
        source = FileSource(name="piece", path=str(path), timestamp_field=view.batch_source.timestamp_field)
        told = False

        def flush(until: datetime) -> None:
            nonlocal told
            with redirect_stdout(sys.stderr):
                if not told:
                    piece = FeatureView(name=view.name, entities=[entity], schema=view.schema, source=source)
                    writer.apply([entity, piece])
                    told = True
                writer.materialize(BEGINNING, until, feature_views=[view.name])

        yield path, flush


def _without_pushed(store: Any, spec: DatasetSpec, view: Any, rows: pa.Table) -> pa.Table:
    """The rows without those of which the online store holds what was pushed and no table knows yet."""
    keys, times = rows[view.entity_columns[0].name], rows[view.batch_source.timestamp_field]
    pushed = _pushed(store, spec, view, keys.to_pylist(), times.to_pylist())
    return rows.filter(pa.array([not one for one in pushed], pa.bool_()))


def _pushed(store: Any, spec: DatasetSpec, view: Any, keys: Sequence[str], times: Sequence[datetime]) -> list[bool]:
    """Whether the online row of each of these keys stands against a table's of these times, since it was pushed.

    A history does where its time is later. Of counts the table's row may be later and not know of the event, since
    a row is made by what falls out too: there it is the events that are remembered.
    """
    if view.stream_source is None:
        return [False] * len(keys)
    if view.name == ACTIVITY["user"]:
        users = {event[0] for event in PushedEvents(spec).of(keys)}
        return [key in users for key in keys]
    online = row_times(store, view, keys)
    return [found is not None and found > time for found, time in zip(online, times, strict=True)]


def _online(store: Any, view: Any, names: Sequence[str], keys: Sequence[str]) -> dict[str, list[Any]]:
    """Online features by name."""
    key = view.entity_columns[0].name
    rows: dict[str, list[Any]] = store.get_online_features(
        [f"{view.name}:{name}" for name in names], [{key: value} for value in keys]
    ).to_dict()
    return rows


def _tell_registry(store: Any, views: Sequence[Any], until: datetime) -> None:
    with changing(store) as draft:
        for view in views:
            draft.registry.apply_materialization(view, draft.project, BEGINNING, until)


def _wrong_value(store: Any, spec: DatasetSpec, view: Any, source: _Source) -> str | None:
    """The first value of a sample of keys that the online store has not as the table has it, in words."""
    key, names = view.entity_columns[0].name, [field.name for field in view.features]
    with _session(store) as connection:
        query = f"SELECT * FROM ({_latest(view, source)}) ORDER BY hash({quoted(key)}) LIMIT {SAMPLE}"
        expected = connection.sql(query).to_arrow_table().to_pydict()
    if not expected[key]:
        return None
    with writing(store):
        found = _online(store, view, names, expected[key])
        pushed = _pushed(store, spec, view, expected[key], expected[view.batch_source.timestamp_field])
    for name in names:
        for place, value in enumerate(expected[name]):
            online = found[name][place]
            if not pushed[place] and not _same(value, online):
                who = f"{view.name}.{name} of {key} '{expected[key][place]}'"
                return f"{who} is {online!r}, but the table says {value!r}"
    return None


def _extent(view: Any, source: _Source) -> tuple[int, datetime | None]:
    """A table's number of keys with a value at a moment, and its newest event up to then."""
    key, time = view.entity_columns[0].name, view.batch_source.timestamp_field
    events = f"FILTER ({ENTERED})" if ENTERED in ds.dataset(source.path).schema.names else ""
    moment = f"TIMESTAMPTZ {literal(source.until.isoformat())}"
    with session() as connection:
        query = (
            f"SELECT count(DISTINCT {quoted(key)}), max({time}::TIMESTAMPTZ) {events}"
            f" FROM {scan(source.path)} WHERE {time}::TIMESTAMPTZ <= {moment}"
        )
        found = connection.sql(query).to_arrow_table().to_pydict()
    (keys,), (newest,) = found.values()
    return keys, newest


def _same(value: Any, online: Any) -> bool:
    if isinstance(value, list) and isinstance(online, list):
        return len(value) == len(online) and all(map(_same, value, online))
    if isinstance(value, float) and isinstance(online, float):
        return value == online or (math.isnan(value) and math.isnan(online))
    # Feast keeps no difference between an empty list and none.
    return bool(value == online) or (value in ([], None) and online in ([], None))
