"""The events of a history: their places in a list, and what their moments say; in training sets and in requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.layout import FIRST_VALUE, MISSING, PADDING_CODE
from components.dataset.moment import CYCLES, EPOCH, MICROSECOND
from components.dataset.spec import EVENT_TIMESTAMP, LABEL

HISTORY_PREFIX = "history_"
#: The titles of the events with label 1, for the prompt.
LIKED_PREFIX = "liked_"
#: Each event's moment in microseconds since 1970 UTC.
MOMENTS = f"{HISTORY_PREFIX}timestamp"
LABELS = HISTORY_PREFIX + LABEL

GAP, HOUR = "gap", "hour"
#: Values of the attributes that every event has. The last gap is 2^29 seconds (17 years) and more.
DERIVED = {LABEL: 2, GAP: 31, HOUR: CYCLES[HOUR].count}

SECOND = 1_000_000

Integers = npt.NDArray[np.int64]
Column = Any  # pa.Array, pa.ChunkedArray or a plain sequence


@dataclass(frozen=True)
class Events:
    """The lists of a column, flattened: for each element its row, its place in the row's list, and itself."""

    count: int
    rows: Integers
    place: Integers
    flat: Column

    @classmethod
    def of(cls, column: Column, name: str) -> Self:
        """From n lists of a field, as an Arrow column or as a plain sequence; null is an empty list.

        Raises:
            UserError: the column holds single values; a string would be read by letters.
        """
        if isinstance(column, pa.Array | pa.ChunkedArray):
            if pa.types.is_null(column.type):
                column = column.cast(pa.list_(pa.string()))
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                raise _no_lists(name, f"a column of type {column.type}")
            lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            flat: Column = pc.list_flatten(column)
        else:
            lists: list[Sequence[Any]] = [() if values is None else values for values in column]
            single = next((one for one in lists if isinstance(one, str) or not hasattr(one, "__len__")), None)
            if single is not None:
                raise _no_lists(name, repr(single))
            lengths = np.fromiter((len(values) for values in lists), dtype=np.int64, count=len(lists))
            flat = [value for values in lists for value in values]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return cls(len(lengths), rows, place, flat)

    def recent(self, codes: Integers, length: int) -> Integers:
        """The codes of the last `length` events of each row, left-padded: [count, length] from those of `flat`."""
        counts = np.bincount(self.rows, minlength=self.count)
        place = self.place + (length - counts)[self.rows]
        found = np.full((self.count, length), PADDING_CODE, dtype=np.int64)
        kept = place >= 0
        found[self.rows[kept], place[kept]] = codes[kept]
        return found


def raw_columns(name: str) -> tuple[str, ...]:
    """The raw columns from which an attribute of the events is encoded."""
    if name not in DERIVED:
        return (HISTORY_PREFIX + name,)
    return {LABEL: (LABELS,), GAP: (MOMENTS, EVENT_TIMESTAMP)}.get(name, (MOMENTS,))


def derived_codes(name: str, columns: Mapping[str, Column], length: int) -> Integers:
    """Local codes [n, length] of an attribute that every event has: its label, its gap or its hour.

    Args:
        name: One of DERIVED.
        columns: Raw columns of n rows: the lists LABELS and MOMENTS and, for the gap, each row's own moment.
        length: Most recent events that are kept.
    """
    events = Events.of(columns[LABELS if name == LABEL else MOMENTS], name)
    values = _integers(events.flat)
    if name == LABEL:
        return events.recent(FIRST_VALUE + values, length)
    if name == HOUR:
        return events.recent(FIRST_VALUE + hour_of_day(values), length)
    now, known = moments_of(columns[EVENT_TIMESTAMP])
    codes = np.where(known[events.rows], FIRST_VALUE + gap_bucket(now[events.rows] - values), MISSING)
    return events.recent(codes, length)


def gap_bucket(microseconds: Integers) -> Integers:
    """Buckets of the time from an event to the moment that looks back at it: they double in width.

    Bucket 0 is less than a second (and what lies ahead), bucket k from 2^(k - 1) to 2^k seconds.
    """
    _, exponent = np.frexp(microseconds // SECOND)
    return np.clip(exponent, 0, DERIVED[GAP] - 1).astype(np.int64) * (microseconds >= SECOND)


def hour_of_day(microseconds: Integers) -> Integers:
    """The hour of the day, UTC, of moments in microseconds since 1970."""
    return CYCLES[HOUR].at(microseconds)


def moments_of(column: Column) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Moments in microseconds since 1970, 0 where there is none, and where there is one.

    Args:
        column: Time stamps as an Arrow column, or a plain sequence of aware datetimes or None.
    """
    if isinstance(column, pa.Array | pa.ChunkedArray):
        known = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
        stamps = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).fill_null(0)
        return _integers(stamps), known
    known = np.array([value is not None for value in column], dtype=bool)
    since = [0 if value is None else (value - EPOCH) // MICROSECOND for value in column]
    return np.array(since, dtype=np.int64), known


def _no_lists(name: str, found: str) -> UserError:
    return UserError(f"field '{name}': takes a list of values per row, not {found}")


def _integers(column: Column) -> Integers:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        column = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(column, dtype=np.int64).reshape(-1)
