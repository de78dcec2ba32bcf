"""Each user's recent events as of each moment, as a table of features."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.dataset.spec import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    ITEM_KEY,
    LABEL,
    USER_KEY,
    DatasetSpec,
    Kind,
)
from components.dataset.vocabulary import HISTORY_PREFIX
from feature_repo.asof import FeatureTable, asof_query, literal, quoted

HISTORY_TABLE = "history"


@dataclass(frozen=True)
class HistoryColumn:
    """One list of the history: its name, the column of the events it is taken from, and the kind of that column."""

    name: str
    source: str
    kind: Kind

    @property
    def number(self) -> bool:
        """Whether the list holds numbers; strings otherwise."""
        return self.kind is Kind.NUMBER

    @property
    def value(self) -> str:
        """SQL of one event's value. A list of the online store holds no null: '' and NaN stand for a missing value.

        Of a field with several values the first stands for the event, since an event is one slot of the input.
        """
        first = f"{quoted(self.source)}[1]" if self.kind is Kind.MULTI else quoted(self.source)
        missing = "'nan'::DOUBLE" if self.number else "''"
        return f"coalesce({first}, {missing})"


def history_columns(spec: DatasetSpec) -> tuple[HistoryColumn, ...]:
    """The lists of a user's history: the item, the fields that `history` names, and its title."""
    if spec.history is None:
        return ()
    ids = [field.name for field in spec.of_side("item") if field.kind is Kind.ID] or [ITEM_KEY]
    title = [spec.history.title] if spec.history.title else []
    names = [name for name in dict.fromkeys([*spec.history.fields, *title]) if name not in ids]
    fields = [spec.field(name) for name in names]
    items = [HistoryColumn(HISTORY_PREFIX + name, ITEM_KEY, Kind.ID) for name in ids]
    return (*items, *(HistoryColumn(HISTORY_PREFIX + field.name, field.name, field.kind) for field in fields))


def history_query(spec: DatasetSpec, impressions: Path, items: Path) -> str:
    """SQL of the history table: one row per user and moment from which on a history holds.

    An event is an impression with label 1. It enters the history one microsecond after it happened, and not before
    it was known: a join as of an impression finds only earlier events, never the impression itself nor another of
    the same time stamp. Lists hold at most `history.length` events in the order in which they became known, the
    most recent last; an item's fields are those that held at the event.
    """
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    lists = ", ".join(f"list({column.value}) OVER recent AS {quoted(column.name)}" for column in history_columns(spec))
    order = f"__known, {EVENT_TIMESTAMP}, {IMPRESSION_ID}"
    newest = f"{EVENT_TIMESTAMP} DESC, {IMPRESSION_ID} DESC"
    return (
        f"SELECT {USER_KEY}, __known AS {EVENT_TIMESTAMP}, {lists} FROM ({_events(spec, impressions, items)})"
        f" WINDOW recent AS (PARTITION BY {USER_KEY} ORDER BY {order}"
        f" ROWS BETWEEN {spec.history.length - 1} PRECEDING AND CURRENT ROW)"
        f" QUALIFY row_number() OVER (PARTITION BY {USER_KEY}, __known ORDER BY {newest}) = 1"
    )


def _events(spec: DatasetSpec, impressions: Path, items: Path) -> str:
    """SQL of the events with the fields of their items."""
    after = f"{EVENT_TIMESTAMP}::TIMESTAMPTZ + INTERVAL 1 MICROSECOND"
    late = spec.sources.impressions.created is not None
    known = f"greatest({after}, {CREATED_TIMESTAMP}::TIMESTAMPTZ)" if late else after
    rows = (
        f"SELECT {IMPRESSION_ID}, {USER_KEY}, {ITEM_KEY}, {EVENT_TIMESTAMP}, {known} AS __known"
        f" FROM read_parquet({literal(impressions)}) WHERE {LABEL} = 1"
    )
    attributes = [column.source for column in history_columns(spec) if column.kind is not Kind.ID]
    if not attributes:
        return rows
    source = spec.sources.items
    created = CREATED_TIMESTAMP if source is not None and source.created is not None else None
    table = FeatureTable(items, {ITEM_KEY: ITEM_KEY}, attributes, EVENT_TIMESTAMP, created, known_only=True)
    return asof_query(rows, EVENT_TIMESTAMP, [table])
