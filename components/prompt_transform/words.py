"""Values of a field as words: codes spelt out, several values joined, what is missing left null."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.spec import FieldSpec, Kind
from components.dataset.values import to_strings

#: Not those of calendar.month_name, which follow the machine's language.
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
#: Between the values of a field that has several.
JOIN = ", "

#: Arrow's string array; pyarrow ships no types.
Strings: TypeAlias = Any


def words_of(field: FieldSpec, column: pa.Array) -> Strings:
    """Words [n] of a column's values; null where a value is missing.

    Raises:
        UserError: the column holds bytes that are not UTF-8.
    """
    try:
        column.validate(full=True)
        if field.kind is Kind.MULTI:
            return _joined(field, column)
        return _each_once(to_strings(column), lambda values: _spoken(field, values))
    except pa.ArrowInvalid as error:
        raise UserError(f"field '{field.name}': not valid UTF-8 ({error}); save its source as UTF-8") from None


def unspoken_codes(field: FieldSpec, column: pa.Array) -> list[str]:
    """The values of a field with `codes` for which the spec has no words, at most ten."""
    if not field.codes:
        return []
    values = pc.list_flatten(column) if field.kind is Kind.MULTI else to_strings(column)
    found = {value for value in pc.unique(values).to_pylist() if value is not None}
    return sorted(found - set(field.codes))[:10]


def _each_once(column: pa.Array, change: Callable[[pa.Array], pa.Array]) -> Strings:
    """Change each different value once, however many rows have it."""
    encoded = column.dictionary_encode()
    return change(encoded.dictionary).take(encoded.indices)


def _spoken(field: FieldSpec, values: pa.Array) -> Strings:
    """Words for codes; white space, line breaks too, becomes one blank."""
    if field.kind is Kind.DATE:
        return pa.array([_day(value) for value in values.to_pylist()], pa.string())
    if field.codes:
        values = pa.array([field.codes.get(value, value) for value in values.to_pylist()], pa.string())
    values = tidy(values)
    # A description is a sentence itself; its period would stand before the comma or period that follows.
    return pc.utf8_rtrim(values, characters=".") if field.kind is Kind.TEXT else values


def _day(value: str | None) -> str | None:
    if value is None:
        return None
    day = date.fromisoformat(value)
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def tidy(values: Strings) -> Strings:
    """Runs of white space become one blank; what is blank becomes null."""
    plain = pc.utf8_trim_whitespace(pc.replace_substring_regex(values, r"\s+", " "))
    return pc.if_else(pc.equal(plain, ""), pa.scalar(None, pa.string()), plain)


def _joined(field: FieldSpec, column: pa.Array) -> Strings:
    """The first `max_values` values of each list, joined; null for an empty list."""
    flat = _each_once(pc.list_flatten(column), lambda values: _spoken(field, values))
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
    there = flat.is_valid().to_numpy(zero_copy_only=False)
    return join_lists(flat.filter(there), first_of(rows[there], len(column), field.max_values), JOIN)


def first_of(rows: Any, count: int, limit: int) -> list[Any]:
    """Positions in a flat list by row, `limit` at most: offsets [count + 1] and the positions kept."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    rank = np.arange(len(rows)) - starts[rows]
    kept = np.flatnonzero(rank < limit)
    return [np.concatenate([[0], np.cumsum(np.minimum(np.diff(starts), limit))]), kept]


def join_lists(flat: Strings, chosen: list[Any], separator: str) -> Strings:
    """Strings [n] from positions of a flat list by row; null where a row has none."""
    offsets, kept = chosen
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat.take(pa.array(kept, pa.int64())))
    joined = pc.binary_join(lists, separator)
    return pc.if_else(pa.array(np.diff(offsets) > 0), joined, pa.scalar(None, pa.string()))
