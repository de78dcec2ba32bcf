"""What a file holds, column by column, seen in one pass over it and in bounded memory."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.files import batches_of, columns_of, format_of, head_of
from components.dataset.spec import Source
from components.dataset.values import to_strings

#: Rows kept, evenly spread over the file; between so many and twice as many.
SAMPLE = 50_000
#: Different values of a column that are counted; beyond, there are more.
COUNTED = 1_000_000
#: Values that may wait before they are counted.
WAITING = 250_000
DELIMITERS = (",", ";", "\t", "|")
NUMBER = re.compile(r"^-?\d+([.,]\d+)?$")


@dataclass(frozen=True)
class Seen:
    """One column: rows and empty ones of the whole file, its types, its different values and an evenly spread sample.

    `sample` [rows of the sample] holds strings, or lists of strings where `is_list`; `values` are all that differ
    (of lists: the single values), None where there are more than COUNTED.
    """

    name: str
    rows: int
    empty: int
    types: frozenset[str]
    values: Any
    sample: Any

    @property
    def different(self) -> int | None:
        """How many different values; None for more than COUNTED."""
        return None if self.values is None else len(self.values)

    @property
    def is_list(self) -> bool:
        """Whether a row holds several values."""
        return "list" in self.types

    @property
    def known(self) -> Any:
        """The sample without its empty rows."""
        return self.sample.drop_null()

    @property
    def whole(self) -> bool:
        """Whether the values are numbers by type and whole, or words."""
        return not self.types & {"float", "list", "record"}


@dataclass(frozen=True)
class Survey:
    """A source as it is best read, and what its columns hold."""

    source: Source
    rows: int
    columns: dict[str, Seen]


def survey(path: str) -> Survey:
    """Look at all of a file.

    Raises:
        UserError: the file is missing, empty, of unknown format, its first line does not name the columns, or names one
            twice.
    """
    source = _described(path)
    columns_of(source, columns_of(source))  # sees that no name stands there twice
    columns: dict[str, _Column] = {}
    rows, step = 0, 1
    for table in batches_of(source):
        for name in table.column_names:
            columns.setdefault(name, _Column(name))
        for column in columns.values():
            there = column.name in table.column_names
            column.add(table[column.name] if there else pa.nulls(table.num_rows), rows, step)
        rows += table.num_rows
        while rows > 2 * SAMPLE * step:
            step *= 2
            for column in columns.values():
                column.thin(step)
    if rows == 0:
        raise UserError(f"{path}: holds no rows; give a file with data")
    return Survey(source, rows, {name: column.seen(rows) for name, column in columns.items()})


@dataclass
class _Column:
    """What is gathered of one column. `places` are the rows of the sample, those that `step` divides."""

    name: str
    known: int = 0
    types: set[str] = field(default_factory=set)
    sample: dict[int, Any] = field(default_factory=dict)
    different: Any = None
    waiting: list[Any] = field(default_factory=list)
    more: bool = False

    def add(self, column: Any, start: int, step: int) -> None:
        """Add the rows of one batch, which begin at row `start` of the file."""
        kind = _type(column.type)
        self.known += len(column) - column.null_count
        if kind == "record":
            self.types.add(kind)
            return
        words = _words(column)
        if words.null_count < len(words):
            self.types.add(kind)
        first = -start % step
        taken = words.take(pa.array(range(first, len(words), step), pa.int64()))
        for place, value in zip(range(start + first, start + len(words), step), taken.to_pylist(), strict=True):
            if value is not None:
                self.sample[place] = value
        if not self.more:
            self._count(pc.list_flatten(words) if kind == "list" else words)

    def _count(self, values: Any) -> None:
        self.waiting.append(_one_array(values.drop_null().unique()))
        if sum(map(len, self.waiting)) > WAITING:
            self._settle()

    def _settle(self) -> None:
        if self.more:
            return
        known = [] if self.different is None else [self.different]
        self.different = pa.concat_arrays([pa.array([], pa.string()), *known, *self.waiting]).unique()
        self.waiting = []
        if len(self.different) > COUNTED:
            self.different, self.more = None, True

    def thin(self, step: int) -> None:
        """Keep only the rows that `step` divides."""
        self.sample = {place: value for place, value in self.sample.items() if place % step == 0}

    def seen(self, rows: int) -> Seen:
        """What there was, of so many rows."""
        self._settle()
        step = max(1, -(-rows // (2 * SAMPLE)))
        step = 1 << (step - 1).bit_length()
        places = range(0, rows, step)
        is_list = "list" in self.types
        values = [self.sample.get(place) for place in places]
        if is_list:
            values = [value if value is None or isinstance(value, list) else [value] for value in values]
        sample = pa.array(values, pa.list_(pa.string()) if is_list else pa.string())
        return Seen(self.name, rows, rows - self.known, frozenset(self.types), self.different, sample)


def _type(kind: Any) -> str:
    checks: Iterator[tuple[str, bool]] = iter(
        [
            ("boolean", pa.types.is_boolean(kind)),
            ("integer", pa.types.is_integer(kind)),
            ("float", pa.types.is_floating(kind) or pa.types.is_decimal(kind)),
            ("moment", pa.types.is_timestamp(kind) or pa.types.is_date(kind)),
            ("list", pa.types.is_list(kind) or pa.types.is_large_list(kind)),
            ("record", pa.types.is_struct(kind) or pa.types.is_map(kind)),
            ("record", pa.types.is_nested(kind)),
        ]
    )
    return next((name for name, fits in checks if fits), "text")


def _words(column: Any) -> Any:
    """Strings, or lists of strings; lists of records are no values."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_nested(kind.value_type):
            return pa.nulls(len(column), pa.list_(pa.string()))
        return column.cast(pa.list_(pa.string()))
    return pa.nulls(len(column), pa.string()) if pa.types.is_nested(kind) else to_strings(column)


def _one_array(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _described(path: str) -> Source:
    """The source with its delimiter and decimal mark."""
    source = Source(path=path)
    if format_of(source) != "csv":
        return source
    head = head_of(source)
    lines = head.splitlines()[:-1] if len(head.splitlines()) > 1 and not head.endswith("\n") else head.splitlines()
    if not lines:
        raise UserError(f"{path}: is empty; its first line must name the columns")
    tabs = [DELIMITERS[2]] if ".tsv" in path.lower() else []
    delimiter = max([*tabs, *DELIMITERS], key=lambda one: _columns(lines, one))
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    _refuse_values(path, rows[0])
    cells = [cell for row in rows[1:] for cell in row]
    comma = any(re.fullmatch(r"-?\d{1,3}(\.?\d{3})*,\d+", cell) for cell in cells)
    point = any(re.fullmatch(r"-?\d+\.\d+", cell) for cell in cells)
    given = {"delimiter": delimiter} if delimiter not in {",", *tabs} else {}
    return Source(path=path, **given, **({"decimal": ","} if comma and not point and delimiter != "," else {}))


def _columns(lines: list[str], delimiter: str) -> int:
    """Columns that a delimiter makes, 1 where the rows differ in their number."""
    rows = [row for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter) if row]
    widths = {len(row) for row in rows[: max(1, len(rows) - 1)]}
    return widths.pop() if len(widths) == 1 else 1


def _refuse_values(path: str, header: list[str]) -> None:
    values = [name for name in header if not name.strip() or NUMBER.match(name.strip())]
    if values:
        raise UserError(
            f"{path}: its first line holds values ({', '.join(header[:4])}), not names; write a first line that names "
            "the columns"
        )
