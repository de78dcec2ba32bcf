"""The point-in-time join as SQL: what was known, and held, at each row's own moment."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROW = "__row"


@dataclass(frozen=True)
class FeatureTable:
    """One table of features: `keys` maps its key columns to those of the rows it is joined to.

    `created` names the column that says when a row became known; with `known_only`, a row counts only from then on,
    else it only decides between rows of one time stamp. A ttl of zero means that values never expire.
    """

    path: Path | str
    keys: dict[str, str]
    features: Sequence[str]
    timestamp: str
    created: str | None = None
    known_only: bool = False
    ttl: timedelta = timedelta(0)
    prefix: str = ""


@contextmanager
def session(memory_limit: str = "3GB", threads: int | None = None) -> Iterator[Any]:
    """A DuckDB connection of its own, on UTC, that spills to a temporary folder beyond `memory_limit`."""
    import duckdb  # who only describes features, or pushes them, needs none

    with TemporaryDirectory(prefix="tandem-duckdb-") as spill:
        settings: dict[str, Any] = {"memory_limit": memory_limit, "temp_directory": spill}
        connection = duckdb.connect(config=settings | ({"threads": threads} if threads else {}))
        try:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
        finally:
            connection.close()


def asof_query(rows: str, timestamp: str, tables: Sequence[FeatureTable], ordered: bool = True) -> str:
    """SQL that gives every row of the query `rows` the values that held at its `timestamp`.

    With `ordered` they come in the order of `rows`, which costs a sort of everything. Of a table's rows with the same
    key, time stamp no later than the row's (and created no later, where asked for) the one with the latest time stamp
    counts, then the one created last. No row is lost and none is doubled.
    """
    numbered = f"*, row_number() OVER () AS {ROW}" if ordered else "*"
    steps = [f"{ROW}s AS (SELECT {numbered} FROM ({rows}))"]
    steps += [f"__t{n} AS ({_effective(table)})" for n, table in enumerate(tables)]
    columns = [f"__e.* EXCLUDE ({ROW})" if ordered else "__e.*"]
    columns += [column for n, table in enumerate(tables) for column in _columns(f"__t{n}", table, timestamp)]
    joins = "".join(_join(f"__t{n}", table, timestamp) for n, table in enumerate(tables))
    order = f" ORDER BY __e.{ROW}" if ordered else ""
    return f"WITH {', '.join(steps)} SELECT {', '.join(columns)} FROM {ROW}s AS __e{joins}{order}"


def latest_query(table: FeatureTable, start: datetime, end: datetime) -> str:
    """SQL of each key's newest row from `start` to `end`, both included: its key, features and times."""
    times = [table.timestamp, *([table.created] if table.created else [])]
    names = ", ".join(map(quoted, [*table.keys, *table.features, *times]))
    keys = ", ".join(map(quoted, table.keys))
    newest = ", ".join(f"{quoted(time)} DESC" for time in times)
    return (
        f"SELECT {names} FROM {scan(table.path)}"
        f" WHERE {quoted(table.timestamp)} BETWEEN {_moment(start)} AND {_moment(end)}"
        f" QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY {newest}) = 1"
    )


def scan(path: Path | str) -> str:
    """SQL of the rows of a Parquet file, or of a folder of such files."""
    return f"read_parquet({literal(Path(path) / '*.parquet' if Path(path).is_dir() else path)})"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str | Path) -> str:
    """A string as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def _moment(time: datetime) -> str:
    return f"TIMESTAMPTZ {literal(time.isoformat())}"


def _effective(table: FeatureTable) -> str:
    """The rows that are ever the answer, with the moment `__from` at which each becomes it.

    A row that becomes known after a later one holds is never the answer: it is left out, and so a join on `__from`
    alone finds the right row, although two times decide.
    """
    time = f"{quoted(table.timestamp)}::TIMESTAMPTZ"
    created = f"coalesce({quoted(table.created)}::TIMESTAMPTZ, {time})" if table.created else time
    begins = f"greatest({time}, {created})" if table.known_only else time
    keys = ", ".join(quoted(key) for key in table.keys)
    names = ", ".join(quoted(name) for name in table.features)
    # Where one time decides, each later row is the answer from its time on.
    late = f" AND (__time, __created) >= max((__time, __created)) OVER (PARTITION BY {keys} ORDER BY __from)"
    return (
        f"SELECT * FROM (SELECT {keys}, {names}, {time} AS __time, {created} AS __created, {begins} AS __from"
        f" FROM {scan(table.path)}) QUALIFY"
        f" row_number() OVER (PARTITION BY {keys}, __from ORDER BY __time DESC, __created DESC) = 1"
        f"{late if table.created and table.known_only else ''}"
    )


def _columns(alias: str, table: FeatureTable, timestamp: str) -> list[str]:
    values = {table.prefix + name: f"{alias}.{quoted(name)}" for name in table.features}
    if table.ttl:
        microseconds = table.ttl // timedelta(microseconds=1)
        alive = f"{alias}.__time + to_microseconds({microseconds}) >= __e.{quoted(timestamp)}"
        values = {name: f"CASE WHEN {alive} THEN {value} END" for name, value in values.items()}
    return [f"{value} AS {quoted(name)}" for name, value in values.items()]


def _join(alias: str, table: FeatureTable, timestamp: str) -> str:
    equal = [f"__e.{quoted(right)} = {alias}.{quoted(left)}" for left, right in table.keys.items()]
    conditions = " AND ".join([*equal, f"__e.{quoted(timestamp)} >= {alias}.__from"])
    return f" ASOF LEFT JOIN {alias} ON {conditions}"
