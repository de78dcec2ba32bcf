"""Live events: a user's online history brought up to what happened just now, before any table knows of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.dataset.errors import UserError
from components.dataset.events import EPOCH, LABELS, MOMENTS
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, LABEL, USER_KEY, DatasetSpec, HistorySpec, Kind
from feature_repo.definitions import USER_EVENTS
from feature_repo.history import HistoryColumn, history_columns, liked_column
from feature_repo.store import online_rows

MICROSECOND = timedelta(microseconds=1)


class Event(BaseModel):
    """An impression that has just happened, with what came of it.

    context: values of the context fields that `history.behaviour` names; others are left alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    user_id: str = Field(min_length=1)
    item_id: str = Field(min_length=1)
    label: int = Field(ge=0, le=1)
    event_timestamp: datetime
    context: dict[str, Any] = Field(default_factory=dict)

    @property
    def moment(self) -> datetime:
        """When it happened; a time stamp that names no zone is taken as UTC."""
        return self.event_timestamp if self.event_timestamp.tzinfo else self.event_timestamp.replace(tzinfo=UTC)

    @property
    def microseconds(self) -> int:
        """When it happened, since 1970 UTC."""
        return (self.moment - EPOCH) // MICROSECOND


def read_events(lines: Iterable[str]) -> list[Event]:
    """Events from JSON lines; empty lines are passed over.

    Raises:
        UserError: a line is no event; with its number.
    """
    events = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                events.append(Event.model_validate_json(line))
            except ValidationError as error:
                problems = (f"{'.'.join(map(str, one['loc'])) or 'line'}: {one['msg']}" for one in error.errors())
                raise UserError(f"line {number} is no event: {'; '.join(problems)}") from None
    return events


def push_events(store: Any, spec: DatasetSpec, events: Sequence[Event], now: datetime | None = None) -> int:
    """Put events into the online histories of their users, through Feast's push source; the users written.

    A history afterwards is what materialising a log with these events would have made of it: one that is there
    already is not added again, items are described as the online store describes them now. Counts over windows are not
    pushed: without the events that fall out again they would be wrong; they follow with the next materialisation. Two
    calls at once for one user may lose an event until then, since an online store has no transactions.

    Args:
        store: what `open_store` gives, or any reader's store of the same project.
        spec: the data set.
        events: in any order.
        now: when late events become known.

    Raises:
        UserError: the data set has no history.
    """
    if spec.history is None:
        raise UserError(f"data set '{spec.name}' has no history that an event could enter; add 'history' to its spec")
    kept = [event for event in events if event.label == 1 or spec.history.events != "positive"]
    if not kept:
        return 0
    by_user: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(kept, key=lambda event: event.moment):
        by_user[event.user_id].append(event)
    items = _rows(online_rows(store, spec, "item", sorted({event.item_id for event in kept})), ITEM_KEY)
    known = _rows(online_rows(store, spec, "user", list(by_user)), USER_KEY)
    rows = [_row(spec, user, known[user], of, items, now or datetime.now(UTC)) for user, of in by_user.items()]
    changed = [row for row in rows if row is not None]
    if changed:
        store.push(USER_EVENTS, pd.DataFrame(changed))
    return len(changed)


def _rows(columns: Mapping[str, list[Any]], key: str) -> dict[str, dict[str, Any]]:
    return {
        value: {name: values[place] for name, values in columns.items() if values}
        for place, value in enumerate(columns[key])
    }


def _row(
    spec: DatasetSpec,
    user: str,
    known: Mapping[str, Any],
    events: Sequence[Event],
    items: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> dict[str, Any] | None:
    """A user's row of the history view after the events; None if it has them all."""
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    columns, liked = history_columns(spec), liked_column(spec)
    (item,) = (column.name for column in columns if column.kind is Kind.ID)
    moments = list(known.get(MOMENTS) or [])
    there = set(zip(known.get(item) or [], moments, strict=True))
    new = [event for event in events if (event.item_id, event.microseconds) not in there]
    if not new:
        return None
    late = bool(moments) and new[0].microseconds < max(moments)
    row: dict[str, Any] = {USER_KEY: user}
    newest = _newest([*(known.get(LABELS) or []), *(event.label for event in new)], spec.history)
    for column in columns:
        every = [*(known.get(column.name) or []), *(_value(column, event, items) for event in new)]
        row[column.name] = [every[place] for place in newest]
    if liked is not None:
        added = [_value(liked, event, items) for event in new if event.label == 1]
        row[liked.name] = [*(known.get(liked.name) or []), *added][-spec.history.length :]
    row[EVENT_TIMESTAMP] = max(now, new[-1].moment) if late else new[-1].moment + MICROSECOND
    return row


def _newest(labels: Sequence[int], history: HistorySpec) -> list[int]:
    """Places of the events that a history keeps, of events with these labels, oldest first."""
    places = range(len(labels))
    if history.events != "per_label":
        return list(places)[-history.length :]
    each = [[place for place in places if labels[place] == label][-history.length :] for label in (0, 1)]
    return sorted(place for kept in each for place in kept)


def _value(column: HistoryColumn, event: Event, items: Mapping[str, Mapping[str, Any]]) -> Any:
    """One event's value in a list of the history, as `HistoryColumn.value` says it in SQL."""
    if column.name == MOMENTS:
        return event.microseconds
    if column.source == LABEL and column.kind is None:
        return event.label
    if column.kind is Kind.ID:
        return event.item_id
    item = items[event.item_id]
    value = item[column.source] if column.source in item else event.context.get(column.source)
    if column.kind is Kind.MULTI and isinstance(value, list):
        value = value[0] if value else None
    if column.kind is Kind.NUMBER:
        return _number(value)
    return "" if value is None else str(value)


def _number(value: Any) -> float:
    """A number, NaN where it is missing or where a caller reported something else."""
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError):
        return float("nan")
