"""Live events: a user's online history and counts brought up to what happened just now, before any table knows."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.dataset.errors import UserError
from components.dataset.events import LABELS, MOMENTS
from components.dataset.moment import AHEAD, EPOCH, MICROSECOND
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, LABEL, USER_KEY, DatasetSpec, HistorySpec, Kind
from feature_repo.activity import ACTIVITY
from feature_repo.counts import PushedEvents, counts
from feature_repo.definitions import HISTORY_VIEW, PUSHED
from feature_repo.history import HistoryColumn, history_columns, liked_column
from feature_repo.locks import writing
from feature_repo.materialise import materialised_folder
from feature_repo.store import online_rows, row_times

log = logging.getLogger("tandem.live")
#: How long what was pushed is known as such, where no counts need it: who pushes something again does so soon.
REMEMBERED = timedelta(days=1)


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
    def key(self) -> tuple[str, str, int]:
        """Of two with the same key one is the other told again."""
        return self.user_id, self.item_id, self.microseconds

    @property
    def microseconds(self) -> int:
        """When it happened, since 1970 UTC."""
        return (self.moment - EPOCH) // MICROSECOND


def read_events(lines: Iterable[str], now: datetime | None = None) -> list[Event]:
    """Events from JSON lines; empty lines are passed over.

    Raises:
        UserError: a line is no event, or one that has not happened yet; with its number.
    """
    latest = (now or datetime.now(UTC)) + AHEAD
    events = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                events.append(Event.model_validate_json(line))
            except ValidationError as error:
                problems = (f"{'.'.join(map(str, one['loc'])) or 'line'}: {one['msg']}" for one in error.errors())
                raise UserError(f"line {number} is no event: {'; '.join(problems)}") from None
            if events[-1].moment > latest:
                # Its user's history would be one of the future until then, and not be served.
                moment = events[-1].moment.isoformat()
                raise UserError(f"line {number} is no event: event_timestamp: {moment} has not happened yet")
    return events


def push_events(store: Any, spec: DatasetSpec, events: Sequence[Event], now: datetime | None = None) -> int:
    """Put events into the online histories and counts of their users, through Feast's push sources.

    What is online of a user afterwards is what the offline tables of a log with these events would give as of now. An
    event that is there already is not added again; items are described as the online store describes them now. An
    event that comes late stands where its moment belongs, or last where the log says when an impression became known,
    since it becomes known now.

    Counts are those of the log that was materialised last and of what was pushed since. They are as of the push:
    what falls out of a window later is seen with the user's next event, or the next materialisation. Item statistics
    wait for the latter (see `definitions.build`).

    Several may push at once, also beside a materialisation: one waits for the other (`locks.writing`).

    Args:
        store: what `open_store` gives.
        spec: the data set.
        events: in any order.
        now: the moment of the push; events after it count once it has come.

    Returns:
        Users whose history changed or, where there are counts, of whom an event had not been pushed before.

    Raises:
        UserError: the data set has neither a history nor counts of its users.
    """
    counted = bool(spec.activity_fields("user"))
    if spec.history is None and not counted:
        raise UserError(
            f"data set '{spec.name}' has no history that an event could enter, and no counts of its users; "
            "add 'history' or 'activity' to its spec"
        )
    if not events:
        return 0
    now, pushed, changed = now or datetime.now(UTC), PushedEvents(spec), set[str]()
    with writing(store):
        keys = pushed.known_of([event.key for event in events])
        new = [event for event in events if event.key not in keys]
        if spec.history is not None:
            changed |= _push_histories(store, spec, new)
        # Remembered only now: what is remembered has entered its history, though it may have left it again.
        known = (now - EPOCH) // MICROSECOND
        pushed.add((*event.key, known, event.label) for event in new)
        if counted and _push_counts(store, spec, pushed, sorted({event.user_id for event in events}), now):
            changed |= {event.user_id for event in new}
        else:
            pushed.forget(known - REMEMBERED // MICROSECOND)
    return len(changed)


def _push_histories(store: Any, spec: DatasetSpec, events: Sequence[Event]) -> set[str]:
    """Put events into their users' histories; the users whose histories changed."""
    assert spec.history is not None  # noqa: S101 - the caller's condition, for the type checker
    kept = [event for event in events if event.label == 1 or spec.history.events != "positive"]
    if not kept:
        return set()
    by_user: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(kept, key=lambda event: event.moment):
        by_user[event.user_id].append(event)
    items = _rows(online_rows(store, spec, "item", sorted({event.item_id for event in kept})), ITEM_KEY)
    known = _rows(online_rows(store, spec, "user", list(by_user)), USER_KEY)
    times = row_times(store, store.get_feature_view(HISTORY_VIEW), list(by_user))
    rows = [
        _row(spec, user, known[user], time, of, items) for (user, of), time in zip(by_user.items(), times, strict=True)
    ]
    changed = [row for row in rows if row is not None]
    if changed:
        store.push(PUSHED[HISTORY_VIEW], pd.DataFrame(changed))
    return {row[USER_KEY] for row in changed}


def _push_counts(store: Any, spec: DatasetSpec, pushed: PushedEvents, users: Sequence[str], now: datetime) -> bool:
    """Bring the counts of users up to now; whether the tables that it takes are here."""
    published = materialised_folder(store, ACTIVITY["user"])
    if published is None:
        _say_that_counts_wait(spec.name)
        return False
    rows = counts(spec, published, pushed.of(users), users, now).to_pandas()
    if len(rows):
        store.push(PUSHED[ACTIVITY["user"]], rows)
    return True


@cache
def _say_that_counts_wait(dataset: str) -> None:
    log.warning(
        "%s: the tables that were materialised are not in this TANDEM_HOME; users' counts wait for a materialisation",
        dataset,
    )


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
