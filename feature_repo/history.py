"""Each user's recent events as of each moment, as a table of features."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.dataset.events import HISTORY_PREFIX, LABELS, LIKED_PREFIX, MOMENTS
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
from feature_repo.asof import FeatureTable, asof_query, literal, quoted

HISTORY_TABLE = "history"
KNOWN = "__known"
#: Where an event stands among all of its user's, by which the lists of both labels are put in one order.
PLACE = "__place"
#: An event's moment under a name that no column of the history has: an engine may take the one for the other.
HAPPENED = "__happened"


@dataclass(frozen=True)
class HistoryColumn:
    """One list of the history: its name, the column of the events it is taken from, and the kind of that column.

    The kind is None for the label and the moment of an event, which are integers.
    """

    name: str
    source: str
    kind: Kind | None

    @property
    def value(self) -> str:
        """SQL of one event's value. A list of the online store holds no null: '' and NaN stand for a missing value.

        Of a field with several values the first stands for the event, since an event is one slot of the input.
        """
        if self.name == MOMENTS:
            return f"epoch_us({quoted(self.source)})"
        if self.kind is None:
            return f"{quoted(self.source)}::BIGINT"
        first = f"{quoted(self.source)}[1]" if self.kind is Kind.MULTI else quoted(self.source)
        missing = "'nan'::DOUBLE" if self.kind is Kind.NUMBER else "''"
        return f"coalesce({first}, {missing})"


def history_columns(spec: DatasetSpec) -> tuple[HistoryColumn, ...]:
    """The lists of equal length that are a user's history: item, the fields that `history` names, label, moment."""
    if spec.history is None:
        return ()
    ids = [field.name for field in spec.of_side("item") if field.kind is Kind.ID] or [ITEM_KEY]
    items = [HistoryColumn(HISTORY_PREFIX + name, ITEM_KEY, Kind.ID) for name in ids]
    names = dict.fromkeys([*spec.history.fields, *spec.history.behaviour])
    fields = [spec.field(name) for name in names if name not in ids]
    of_fields = [HistoryColumn(HISTORY_PREFIX + field.name, field.name, field.kind) for field in fields]
    return (*items, *of_fields, HistoryColumn(LABELS, LABEL, None), HistoryColumn(MOMENTS, EVENT_TIMESTAMP, None))


def liked_column(spec: DatasetSpec) -> HistoryColumn | None:
    """The list of what the prompt says of a history: the titles of its positive events."""
    if spec.history is None or spec.history.title is None:
        return None
    field = spec.field(spec.history.title)
    return HistoryColumn(LIKED_PREFIX + field.name, field.table_column, field.kind)


def history_query(spec: DatasetSpec, impressions: Path, items: Path) -> str:
    """SQL of the history table: one row per user and moment from which on a history holds.

    An event is an impression that the label rule keeps; with `events: positive`, one with label 1. It enters the
    history one microsecond after it happened, and not before it was known: a join as of an impression finds only
    earlier events, never the impression itself nor another of the same time stamp. Lists hold at most
    `history.length` events in the order in which they became known, the most recent last; an item's fields are those
    that held at the event. With `events: per_label` that many of each label, in one list. The positive events' titles
    are a list of their own, of at most `history.length`: a prompt's history does not get shorter by what a user did
    not like.
    """
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    liked = liked_column(spec)
    tables = [f"__events AS MATERIALIZED ({_events(spec, impressions, items)})"]
    if spec.history.events == "per_label":
        tables += _per_label(spec)
    else:
        kept = "TRUE" if spec.history.events == "all" else f"{LABEL} = 1"
        tables += [f"__history AS ({_recent(spec, history_columns(spec), kept)})"]
    start = f"WITH {', '.join(tables)}"
    if liked is None:
        return f"{start} SELECT * FROM __history"
    return (
        f"{start}, __liked AS ({_recent(spec, (liked,), f'{LABEL} = 1')})"
        f" SELECT __history.*, coalesce(__liked.{quoted(liked.name)}, []) AS {quoted(liked.name)} FROM __history"
        f" ASOF LEFT JOIN __liked ON __history.{USER_KEY} = __liked.{USER_KEY}"
        f" AND __history.{EVENT_TIMESTAMP} >= __liked.{EVENT_TIMESTAMP}"
    )


def _per_label(spec: DatasetSpec) -> list[str]:
    """SQL tables that lead to `__history`: the last events of each label, put in one order by their places."""
    columns = history_columns(spec)
    order = f"PARTITION BY {USER_KEY} ORDER BY {KNOWN}, {EVENT_TIMESTAMP}, {IMPRESSION_ID}"
    placed = [*columns, HistoryColumn(PLACE, PLACE, None)]
    sides = {name: f"{LABEL} = {label}" for name, label in (("__disliked_events", 0), ("__liked_events", 1))}
    both = ", ".join(
        "list_concat(" + ", ".join(f"coalesce({side}.{quoted(column.name)}, [])" for side in sides) + ")"
        f" AS {quoted(column.name)}"
        for column in placed
    )
    joins = " ".join(
        f"ASOF LEFT JOIN {side} ON __moments.{USER_KEY} = {side}.{USER_KEY}"
        f" AND __moments.{EVENT_TIMESTAMP} >= {side}.{EVENT_TIMESTAMP}"
        for side in sides
    )
    ordered = ", ".join(
        f"list_select({quoted(column.name)}, list_grade_up({PLACE})) AS {quoted(column.name)}" for column in columns
    )
    return [
        f"__placed AS MATERIALIZED (SELECT *, row_number() OVER ({order}) AS {PLACE} FROM __events)",
        *(f"{side} AS ({_recent(spec, placed, kept, '__placed')})" for side, kept in sides.items()),
        f"__moments AS (SELECT DISTINCT {USER_KEY}, {KNOWN} AS {EVENT_TIMESTAMP} FROM __events)",
        f"__both AS (SELECT __moments.{USER_KEY}, __moments.{EVENT_TIMESTAMP}, {both} FROM __moments {joins})",
        f"__history AS (SELECT {USER_KEY}, {EVENT_TIMESTAMP}, {ordered} FROM __both)",
    ]


def _recent(spec: DatasetSpec, columns: Sequence[HistoryColumn], kept: str, events: str = "__events") -> str:
    """SQL of the lists of the last events that meet a condition, per user and moment at which one became known."""
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    lists = ", ".join(f"list({column.value}) OVER recent AS {quoted(column.name)}" for column in columns)
    newest = f"{HAPPENED} DESC, {IMPRESSION_ID} DESC"
    return (
        f"SELECT {USER_KEY}, {KNOWN} AS {EVENT_TIMESTAMP}, {lists} FROM {events} WHERE {kept}"
        f" WINDOW recent AS (PARTITION BY {USER_KEY} ORDER BY {KNOWN}, {HAPPENED}, {IMPRESSION_ID}"
        f" ROWS BETWEEN {spec.history.length - 1} PRECEDING AND CURRENT ROW)"
        f" QUALIFY row_number() OVER (PARTITION BY {USER_KEY}, {KNOWN} ORDER BY {newest}) = 1"
    )


def _events(spec: DatasetSpec, impressions: Path, items: Path) -> str:
    """SQL of the events with the fields of their items."""
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    after = f"{EVENT_TIMESTAMP}::TIMESTAMPTZ + INTERVAL 1 MICROSECOND"
    late = spec.sources.impressions.created is not None
    known = f"greatest({after}, {CREATED_TIMESTAMP}::TIMESTAMPTZ)" if late else after
    behaviour = "".join(f", {quoted(name)}" for name in dict.fromkeys(spec.history.behaviour))
    rows = (
        f"SELECT {IMPRESSION_ID}, {USER_KEY}, {ITEM_KEY}, {EVENT_TIMESTAMP}, {LABEL}{behaviour},"
        f" {EVENT_TIMESTAMP} AS {HAPPENED}, {known} AS {KNOWN}"
        f" FROM read_parquet({literal(impressions)})"
    )
    title = [spec.history.title] if spec.history.title else []
    named = [spec.field(name) for name in dict.fromkeys([*spec.history.fields, *title])]
    attributes = [field.name for field in named if field.kind is not Kind.ID]
    if not attributes:
        return rows
    source = spec.sources.items
    created = CREATED_TIMESTAMP if source is not None and source.created is not None else None
    table = FeatureTable(items, {ITEM_KEY: ITEM_KEY}, attributes, EVENT_TIMESTAMP, created, known_only=True)
    return asof_query(rows, EVENT_TIMESTAMP, [table], ordered=False)
