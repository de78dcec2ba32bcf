"""What users did and what became of items over windows of time, as of each moment, as tables of features."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

from datetime import timedelta

from components.dataset.spec import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_KEY, LABEL, USER_KEY, DatasetSpec
from feature_repo.asof import quoted

#: View of each side, which is also the name of its published table.
ACTIVITY = {"user": "user_activity", "item": "item_statistics"}
#: Column that says whether an event came in at a row's moment; otherwise one only fell out of a window.
ENTERED = "entered"
#: Published table of the events themselves, for users whose events are pushed.
EVENTS_TABLE = "user_events"
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def activity_query(spec: DatasetSpec, side: str, key: str, impressions: str) -> str:
    """SQL of a side's table: one row per key and moment at which one of its numbers changes.

    `impressions` is the SQL of what stands behind FROM: a file of them, or a query in brackets.

    An event is any impression. It counts in a window of length w from one microsecond after it happened (or from
    the moment at which it became known, where that is later) until w after it happened: an impression's own label,
    and that of another with its time stamp, are never in its numbers. Each row holds running sums of what came in
    and what fell out, so that the table is as exact between events as at them, and the newest row up to a moment is
    right for that moment.
    """
    assert spec.activity is not None  # noqa: S101 - the caller's condition, for the type checker
    windows = spec.activity.windows
    sums = ", ".join(
        f"sum({name}) OVER before AS {name}" for place in range(len(windows)) for name in (f"__n{place}", f"__p{place}")
    )
    measures = ", ".join(_measures(side, window, place) for place, window in enumerate(windows))
    return (
        f"WITH __events AS ({_events(spec, key, impressions)}), __changes AS ({_changes(windows)})"
        f" SELECT __key AS {key}, make_timestamptz(__at) AS {EVENT_TIMESTAMP}, {ENTERED}, {measures}"
        f" FROM (SELECT __key, __at, {ENTERED}, {sums} FROM __changes"
        " WINDOW before AS (PARTITION BY __key ORDER BY __at ROWS UNBOUNDED PRECEDING))"
    )


def length(window: str) -> timedelta:
    """The length of a window such as '7d'."""
    return timedelta(**{UNITS[window[-1]]: int(window[:-1])})


def _measures(side: str, window: str, place: int) -> str:
    count, positives = f"__n{place}", f"__p{place}"
    names = {
        "impressions": count,
        "positives": positives,
        "positive_rate": f"CASE WHEN {count} > 0 THEN {positives} / {count} END",
    }
    return ", ".join(f"{value} AS {quoted(f'{side}_{name}_{window}')}" for name, value in names.items())


def events_query(spec: DatasetSpec, impressions: str) -> str:
    """SQL of what a user's numbers are made of, in the order of the users: few rows are then read for a few of them."""
    created = f", {CREATED_TIMESTAMP}" if spec.sources.impressions.created is not None else ""
    columns = f"{USER_KEY}, {ITEM_KEY}, {EVENT_TIMESTAMP}{created}, {LABEL}"
    return f"SELECT {columns} FROM {impressions} ORDER BY {USER_KEY}"


def _events(spec: DatasetSpec, key: str, impressions: str) -> str:
    """SQL of all impressions: key, when it happened and was known (microseconds since 1970), label."""
    known = f"epoch_us({EVENT_TIMESTAMP}) + 1"
    if spec.sources.impressions.created is not None:
        known = f"greatest({known}, epoch_us({CREATED_TIMESTAMP}))"
    return (
        f"SELECT {key} AS __key, epoch_us({EVENT_TIMESTAMP}) AS __time, {known} AS __known, {LABEL} AS __label"
        f" FROM {impressions}"
    )


def _changes(windows: tuple[str, ...]) -> str:
    """SQL of what comes into and falls out of each window, summed per key and moment.

    An event that becomes known only after a window has passed never is in it.
    """
    lengths = [length(window) // timedelta(microseconds=1) for window in windows]
    entering = [f"(__known < __time + {width})::DOUBLE" for width in lengths]
    moves = [_move("__known", entering, "true", "true")]
    for place, width in enumerate(lengths):
        leaving = ["-1::DOUBLE" if place == other else "0::DOUBLE" for other in range(len(lengths))]
        moves.append(_move(f"__time + {width}", leaving, f"__known < __time + {width}", "false"))
    columns = [f"__{letter}{place}" for place in range(len(lengths)) for letter in "np"]
    sums = ", ".join(f"sum({name}) AS {name}" for name in columns)
    return (
        f"SELECT __key, __at, bool_or({ENTERED}) AS {ENTERED}, {sums} FROM ({' UNION ALL '.join(moves)}) GROUP BY ALL"
    )


def _move(at: str, counts: list[str], condition: str, entered: str) -> str:
    numbers = ", ".join(f"{count} AS __n{place}, {count} * __label AS __p{place}" for place, count in enumerate(counts))
    return f"SELECT __key, {at} AS __at, {entered} AS {ENTERED}, {numbers} FROM __events WHERE {condition}"
