"""One spelling for the values of keys and categories: always strings, the same from a file and from a request."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: Above this a float no longer tells every whole number apart.
EXACT_FLOAT = 2**53


def as_text(value: Any) -> str | None:
    """The string that stands for a Python value: 1 and 1.0 are '1', True is 'true'; None, NaN and '' are missing."""
    if isinstance(value, str):
        return value or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text: str | None = to_strings(pa.array([value]))[0].as_py()
    return text


def to_strings(column: Any) -> Any:
    """The same for an Arrow column (array or chunked array): a string column in which '' is null.

    Raises:
        pa.ArrowInvalid: binary values that are not UTF-8.
        pa.ArrowNotImplementedError: the column holds lists or records.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = _whole_as_integers(column)
    strings = column if column.type == pa.string() else column.cast(pa.string())
    return pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)


def _whole_as_integers(column: Any) -> Any:
    """Floats as strings without '.0': integer columns with gaps reach us as floats."""
    column = column.cast(pa.float64())
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), float(EXACT_FLOAT)))
    integers = pc.if_else(whole, column, pa.scalar(None, pa.float64())).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(integers, column.cast(pa.string()))
