"""Live events: a user's online history brought up to what happened just now, before any table knows of it."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.dataset.errors import UserError
from components.dataset.events import EPOCH, LABELS, MOMENTS
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, LABEL, USER_KEY, DatasetSpec, HistorySpec, Kind
from feature_repo.definitions import HISTORY_VIEW, USER_EVENTS
from feature_repo.history import HistoryColumn, history_columns, liked_column
from feature_repo.locks import writing
from feature_repo.store import online_rows, row_times

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


def push_events(store: Any, spec: DatasetSpec, events: Sequence[Event]) -> int:
    """Put events into the online histories of their users, through Feast's push source; the users written.

    A history afterwards is what materialising a log with these events would have made of it: one that is there
    already is not added again, items are described as the online store describes them now. An event that comes late
    stands where its moment belongs, or last where the log says when an impression became known, since it becomes
    known now. Counts over windows are not pushed: without the events that fall out again they would be wrong; they
    follow with the next materialisation.

    Several may push at once, also beside a materialisation: one waits for the other (`locks.writing`).

    Args:
        store: what `open_store` gives.
        spec: the data set.
        events: in any order.

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
    with writing(store):
        known = _rows(online_rows(store, spec, "user", list(by_user)), USER_KEY)
        times = row_times(store, store.get_feature_view(HISTORY_VIEW), list(by_user))
        rows = [
            _row(spec, user, known[user], time, of, items)
            for (user, of), time in zip(by_user.items(), times, strict=True)
        ]
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
    time: datetime | None,
    events: Sequence[Event],
    items: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    """A user's row of the history view after the events, which come in the order of time; None if it stays as it is.

    It is later than the row that it replaces, of `time`: materialising keeps it until a table has a later one.
    """
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    columns, liked = history_columns(spec), liked_column(spec)
    (item,) = (column.name for column in columns if column.kind is Kind.ID)
    lists = {column.name: list(known.get(column.name) or []) for column in columns}
    titles = list(known.get(liked.name) or []) if liked else []
    entered = False
    for event in events:
        if (event.item_id, event.microseconds) in zip(lists[item], lists[MOMENTS], strict=True):
            continue
        place = _place(spec, lists[MOMENTS], event)
        labels = [*lists[LABELS][:place], event.label, *lists[LABELS][place:]]
        newest = _newest(labels, spec.history)
        if place not in newest:
            continue  # a full history knows of nothing as old as this
        if liked is not None and event.label == 1:
            titles.insert(len(titles) - sum(lists[LABELS][place:]), _value(liked, event, items))
        for column in columns:
            lists[column.name].insert(place, _value(column, event, items))
            lists[column.name] = [lists[column.name][kept] for kept in newest]
        entered = True
    if not entered:
        return None
    # Of a list of nothing but NaN Feast makes zeros, unless its type says that they are numbers.
    numbers = {column.name: np.array(lists[column.name], float) for column in columns if column.kind is Kind.NUMBER}
    row: dict[str, Any] = {USER_KEY: user, **lists, **numbers}
    if liked is not None:
        row[liked.name] = titles[-spec.history.length :]
    after = EPOCH + MICROSECOND * (max(lists[MOMENTS]) + 1)
    row[EVENT_TIMESTAMP] = after if time is None else max(after, time + MICROSECOND)
    return row


def _place(spec: DatasetSpec, moments: Sequence[int], event: Event) -> int:
    """Where an event stands among those that are there: they are in the order in which they became known."""
    if spec.sources.impressions.created is not None:
        return len(moments)
    return bisect_right(moments, event.microseconds)


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
