"""Source columns of any type made into the types of the validated tables, or refused by row and value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.values import EXACT_FLOAT, to_strings

Column = Any  # pa.ChunkedArray; pyarrow has no annotations
MOMENT = pa.timestamp("us", "UTC")
#: Words for "no value" among the numbers of a text file. Among categories only the empty cell is one: NA is Namibia.
NO_NUMBER = pa.array(["", "NA", "N/A", "na", "n/a", "NaN", "nan", "null", "NULL", "None", "none", r"\N", "?"])
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6}
#: Seconds from 1970 to the years 1678 and 2262, the range of the nanosecond time stamps of data frames.
FIRST_SECOND, LAST_SECOND = -9_214_560_000, 9_214_646_400


class ColumnError(ValueError):
    """A column cannot be what the spec says. The message continues 'column x ...'."""


def texts(column: Column) -> Column:
    """Strings; whole numbers without a decimal point, '' as null.

    Raises:
        ColumnError: the column holds lists or records, or floats too large to tell apart.
    """
    if pa.types.is_floating(column.type) and (pc.max(pc.abs(column.drop_null())).as_py() or 0) >= EXACT_FLOAT:
        raise ColumnError(f"holds floats above {EXACT_FLOAT}, which no longer tell keys apart; write them as strings")
    try:
        return to_strings(column)
    except pa.ArrowInvalid:
        raise ColumnError("holds bytes that are not UTF-8; convert them to UTF-8") from None
    except pa.ArrowNotImplementedError:
        hint = "write kind: multi" if _is_list(column.type) else "give one column per value"
        raise ColumnError(f"is of type {column.type}, not one value per row; {hint}") from None


def numbers(column: Column, decimal: str = ".") -> Column:
    """float64, null where there is no number.

    Args:
        column: Numbers, or words that are numbers.
        decimal: Decimal mark of the words; with a comma, periods may stand between thousands.

    Raises:
        ColumnError: with the first row that holds something else.
    """
    column = _decoded(column)
    if _is_string(column.type):
        words = pc.utf8_trim_whitespace(column.cast(pa.string()))
        if decimal == ",":
            grouped = pc.match_substring_regex(words, r"^[+-]?\d{1,3}(\.\d{3})+(,\d+)?$")
            words = pc.if_else(grouped, pc.replace_substring(words, ".", ""), words)
            words = pc.replace_substring(words, ",", ".")
        words = pc.if_else(pc.is_in(words, NO_NUMBER), pa.scalar(None, pa.string()), words)
        return _cast_or_name(words, lambda part: part.cast(pa.float64()), _no_number)
    try:
        found = column.cast(pa.float64(), safe=False)
    except pa.ArrowNotImplementedError:
        raise ColumnError(f"is of type {column.type}, not a number; write kind: category, or another column") from None
    return pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found)


def _no_number(row: int, value: str) -> str:
    hint = (
        "write a decimal point, or 'decimal: \",\"' under its source"
        if "," in value
        else "correct it, leave it empty, or write kind: category"
    )
    return f"holds '{value}' in row {row}, which is no number; {hint}"


def lists(column: Column, separator: str) -> Column:
    """list<string>, split at the separator where it is text; trimmed, without empty values; null where none is left.

    Raises:
        ColumnError: the column holds records or lists of them.
    """
    column = _decoded(column)
    if not _is_list(column.type):
        column = pc.split_pattern(texts(column), separator)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = pc.utf8_trim_whitespace(texts(pc.list_flatten(column)))
    kept = pc.fill_null(pc.greater(pc.utf8_length(values), 0), False)
    row = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.bincount(row[kept.to_numpy()], minlength=len(lengths))
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    flat = _one_array(values.filter(kept))
    return pa.chunked_array([pa.ListArray.from_arrays(ends, flat, mask=pa.array(counts == 0))])


def moments(column: Column, unit: str, form: str | None = None) -> Column:
    """Time stamps in UTC to the microsecond; those without a zone are taken as UTC.

    Args:
        column: Time stamps, dates, ISO 8601 strings, or numbers since 1970.
        unit: Unit of the numbers: s, ms or us.
        form: How words and whole numbers are to be read where they are neither, in the letters of strptime.

    Raises:
        ColumnError: with the first row that is no moment between 1678 and 2262.
    """
    column = _decoded(column)
    if form is not None and (_is_string(column.type) or pa.types.is_integer(column.type)):
        return _in_range(_moments_of_form(texts(column), form))
    if _is_string(column.type):
        return _moments_from_words(column.cast(pa.string()), unit)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _in_range(column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(MOMENT))
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return _moments_from_numbers(column, unit)
    raise ColumnError(f"is of type {column.type}, not a moment; give time stamps, dates, ISO strings or numbers")


def dates(column: Column, unit: str, form: str | None = None) -> Column:
    """Days as words, '2024-05-31': of whatever `moments` reads.

    Raises:
        ColumnError: with the first row that is no moment between 1678 and 2262.
    """
    return moments(column, unit, form).cast(pa.date32()).cast(pa.string())


def _moments_of_form(words: Column, form: str) -> Column:
    words = to_strings(pc.utf8_trim_whitespace(words))
    found = pc.strptime(words, format=form, unit="us", error_is_null=True)
    fault = pc.and_(pc.is_null(found), pc.is_valid(words))
    if pc.any(fault).as_py():
        row = pc.index(fault, True).as_py()
        raise ColumnError(
            f"holds '{words[row].as_py()}' in row {row + 1}, which is not of the form '{form}'; correct it"
        )
    return found.cast(MOMENT)


def _moments_from_words(words: Column, unit: str) -> Column:
    words = to_strings(pc.utf8_trim_whitespace(words))
    first = words.drop_null().slice(0, 1)
    if len(first) and pc.all(pc.match_substring_regex(first, r"^[+-]?[0-9.]+([eE][+-]?\d+)?$")).as_py():
        return _moments_from_numbers(_cast_or_name(words, _whole_or_float, _no_moment), unit)
    return _in_range(_cast_or_name(words, _from_iso, _no_moment))


def _whole_or_float(words: Column) -> Column:
    try:
        return words.cast(pa.int64())
    except pa.ArrowInvalid:
        return words.cast(pa.float64())


def _no_moment(row: int, value: str) -> str:
    return (
        f"holds '{value}' in row {row}, which is no moment; write it as 2024-05-31T18:30:00Z or seconds since 1970, "
        "or name its form: 'timestamp_format' of the source, 'format' of a date"
    )


def _from_iso(words: Column) -> Column:
    plain = pa.timestamp("us")
    try:
        return words.cast(plain).cast(MOMENT)
    except pa.ArrowInvalid:
        # Zones, finer fractions and the suffix of some warehouses are rarer, and dearer to look for.
        words = pc.replace_substring_regex(words, r"(\.\d{6})\d+", r"\1")
        words = pc.replace_substring_regex(words, r" UTC$", "Z")
    zoned = pc.match_substring_regex(words, r":\d{2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)$")
    nothing = pa.scalar(None, pa.string())
    naive = pc.if_else(zoned, nothing, words).cast(plain).cast(MOMENT)
    return pc.coalesce(naive, pc.if_else(zoned, words, nothing).cast(MOMENT))


def _moments_from_numbers(column: Column, unit: str) -> Column:
    count = column.cast(pa.float64(), safe=False)
    count = pc.if_else(pc.is_nan(count), pa.scalar(None, pa.float64()), count)
    _refuse_beyond(count, unit)
    per_microsecond = PER_SECOND["us"] // PER_SECOND[unit]
    if pa.types.is_integer(column.type):
        return pc.multiply(column.cast(pa.int64()), per_microsecond).cast(MOMENT)
    return pc.round(pc.multiply(count, float(per_microsecond))).cast(pa.int64()).cast(MOMENT)


def _refuse_beyond(count: Column, unit: str) -> None:
    first, last = (float(second) * PER_SECOND[unit] for second in (FIRST_SECOND, LAST_SECOND))
    beyond = pc.or_(pc.less(count, first), pc.greater(count, last))
    if not pc.any(beyond).as_py():
        return
    row = pc.index(beyond, True).as_py()
    value = count[row].as_py()
    fitting = [u for u, scale in PER_SECOND.items() if FIRST_SECOND <= value / scale <= LAST_SECOND]
    hint = f"write 'keys.timestamp_unit: {fitting[0]}'" if fitting else "correct it"
    raise ColumnError(f"holds {value:.15g} in row {row + 1}, no moment between 1678 and 2262 in unit '{unit}'; {hint}")


def _in_range(column: Column) -> Column:
    seconds = pc.divide(column.cast(pa.int64()), PER_SECOND["us"])
    beyond = pc.or_(pc.less(seconds, FIRST_SECOND), pc.greater(seconds, LAST_SECOND))
    if pc.any(beyond).as_py():
        row = pc.index(beyond, True).as_py()
        value = column[row].cast(pa.string()).as_py()
        raise ColumnError(f"holds {value} in row {row + 1}, which is not between 1678 and 2262; correct it")
    return column


def _cast_or_name(column: Column, convert: Callable[[Column], Column], say: Callable[[int, str], str]) -> Column:
    """Convert a column of strings; if it cannot be, halve it until the first row at fault is left."""
    try:
        return convert(column)
    except pa.ArrowInvalid:
        low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            convert(column.slice(low, middle - low))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    raise ColumnError(say(low + 1, column[low].as_py()))


def _decoded(column: Column) -> Column:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _is_string(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _one_array(column: Column) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
