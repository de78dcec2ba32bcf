"""A user's counts over windows as of a moment, of the log's events and of those that were pushed since."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.dataset.columns import MOMENT
from components.dataset.moment import EPOCH, MICROSECOND
from components.dataset.spec import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_KEY, LABEL, USER_KEY, DatasetSpec
from feature_repo.activity import EVENTS_TABLE, activity_query, length
from feature_repo.asof import literal, quoted, scan, session
from feature_repo.environment import feast_home

#: Columns of an event, all times in microseconds since 1970.
COLUMNS = ("user", "item", "moment", "known", "label")
#: Users or events that are named in one statement.
AT_ONCE = 500

PushedEvent = tuple[str, str, int, int, int]


@dataclass(frozen=True)
class PushedEvents:
    """The events of one data set that were pushed lately, in a file: where users are counted, until a log has them.

    An event of a user, an item and a moment is there once. Only who holds `locks.writing` may use it.
    """

    spec: DatasetSpec

    @property
    def path(self) -> Path:
        """Where it is: beside the notes on what was materialised, which everybody who writes online rows shares."""
        return feast_home() / f"{self.spec.identifier}-pushed.db"

    def add(self, events: Iterable[PushedEvent]) -> None:
        """Add those that are not there."""
        with self._opened() as connection:
            connection.executemany("INSERT OR IGNORE INTO pushed VALUES (?, ?, ?, ?, ?)", events)

    def users(self) -> list[str]:
        """All users who have an event here, in order."""
        with self._opened() as connection:
            return [user for (user,) in connection.execute("SELECT DISTINCT user FROM pushed ORDER BY user")]

    def of(self, users: Sequence[str]) -> list[PushedEvent]:
        """The events of some users."""
        found: list[PushedEvent] = []
        with self._opened() as connection:
            for start in range(0, len(users), AT_ONCE):
                some = users[start : start + AT_ONCE]
                marks = ", ".join("?" * len(some))
                found += connection.execute(f"SELECT * FROM pushed WHERE user IN ({marks})", list(some)).fetchall()
        return found

    def known_of(self, keys: Sequence[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
        """Those of some users, items and moments that are here."""
        query = "SELECT 1 FROM pushed WHERE user = ? AND item = ? AND moment = ?"
        with self._opened() as connection:
            return {key for key in keys if connection.execute(query, key).fetchone()}

    def forget(self, before: int) -> None:
        """Take out what became known before a moment."""
        with self._opened() as connection:
            connection.execute("DELETE FROM pushed WHERE known < ?", [before])

    def drop(self, events: Iterable[PushedEvent]) -> None:
        """Take some out."""
        with self._opened() as connection:
            keys = [event[:3] for event in events]
            connection.executemany("DELETE FROM pushed WHERE user = ? AND item = ? AND moment = ?", keys)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Locks of SQLite's own are not to be trusted on volumes that several machines share; there is ours.
        connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?nolock=1", uri=True)
        try:
            with connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS pushed (user TEXT, item TEXT, moment INTEGER, known INTEGER,"
                    " label INTEGER, PRIMARY KEY (user, item, moment)) WITHOUT ROWID"
                )
                yield connection
        finally:
            connection.close()


def counts(
    spec: DatasetSpec, published: Path, pushed: Sequence[PushedEvent], users: Sequence[str], at: datetime
) -> Any:
    """The rows of `user_activity` that hold for some users at a moment, with the same SQL as the published table's.

    An event that was pushed and that the log has too counts once. A user of whom nothing is known has no row.

    Args:
        spec: The data set.
        published: The folder of the published tables.
        pushed: Events that were pushed.
        users: Whose rows.
        at: The moment, aware.
    """
    names = ", ".join(quoted(field.name) for field in spec.activity_fields("user"))
    created = f", {CREATED_TIMESTAMP}" if spec.sources.impressions.created is not None else ""
    columns = f"{USER_KEY}, {EVENT_TIMESTAMP}{created}, {LABEL}"
    log = f"SELECT * FROM {scan(published / f'{EVENTS_TABLE}.parquet')} SEMI JOIN __users USING ({USER_KEY})"
    rows = (
        f"WITH __log AS MATERIALIZED ({log}) SELECT {columns} FROM __log UNION ALL"
        f" SELECT {columns} FROM __pushed ANTI JOIN __log USING ({USER_KEY}, {ITEM_KEY}, {EVENT_TIMESTAMP})"
    )
    with session() as connection:
        connection.register("__users", pa.table({USER_KEY: pa.array(users, pa.string())}))
        connection.register("__pushed", _table(pushed))
        return connection.sql(
            f"SELECT {USER_KEY}, {EVENT_TIMESTAMP}, {names}"
            f" FROM ({activity_query(spec, 'user', USER_KEY, f'({rows})')})"
            f" WHERE {EVENT_TIMESTAMP} <= TIMESTAMPTZ {literal(at.isoformat())}"
            f" QUALIFY row_number() OVER (PARTITION BY {USER_KEY} ORDER BY {EVENT_TIMESTAMP} DESC) = 1"
        ).to_arrow_table()


def spent(spec: DatasetSpec, published: Path, pushed: Sequence[PushedEvent], at: datetime) -> list[PushedEvent]:
    """The events that need not be remembered: the log has them, or they have left the longest window."""
    assert spec.activity is not None  # noqa: S101 - the caller's condition, for the type checker
    log, same = scan(published / f"{EVENTS_TABLE}.parquet"), f"{USER_KEY}, {ITEM_KEY}, {EVENT_TIMESTAMP}"
    with session() as connection:
        connection.register("__pushed", _table(pushed))
        told = connection.sql(f"SELECT {same} FROM __pushed SEMI JOIN {log} USING ({same})").to_arrow_table()
    logged = set(zip(*(told[name].to_pylist() for name in (USER_KEY, ITEM_KEY, EVENT_TIMESTAMP)), strict=True))
    oldest = (at - max(map(length, spec.activity.windows)) - EPOCH) // MICROSECOND
    return [
        event
        for event in pushed
        if event[2] <= oldest or (event[0], event[1], EPOCH + event[2] * MICROSECOND) in logged
    ]


def _table(pushed: Sequence[PushedEvent]) -> pa.Table:
    named: dict[str, Any] = dict(zip(COLUMNS, zip(*pushed, strict=True), strict=True)) if pushed else {}
    kinds = {"user": (USER_KEY, pa.string()), "item": (ITEM_KEY, pa.string()), "label": (LABEL, pa.int8())}
    columns = {name: pa.array(named.get(column, ()), kind) for column, (name, kind) in kinds.items()}
    times = {"moment": EVENT_TIMESTAMP, "known": CREATED_TIMESTAMP}
    return pa.table(
        columns | {name: pa.array(named.get(column, ()), pa.int64()).cast(MOMENT) for column, name in times.items()}
    )
