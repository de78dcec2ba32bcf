"""Reading one source: CSV, Parquet or JSON lines, from any path that fsspec knows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from components.dataset.errors import UserError
from components.dataset.spec import Source

ENDINGS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
#: Bytes read at a time; no row may be longer.
BLOCK = 16 * 2**20
#: Rows of Parquet read at a time where a file is not read as a whole.
ROWS = 65_536
#: JSON lines looked at for the names of the columns before a missing name is searched for in all of them.
LINES = 1000
NOT_UTF8 = "is not UTF-8; convert it, for instance with 'iconv -f cp1252 -t utf-8'"


def format_of(source: Source) -> str:
    """The format the source names, or that of its file's ending.

    Raises:
        UserError: the ending says nothing.
    """
    if source.format is not None:
        return source.format
    endings = [ending for ending in PurePosixPath(source.path).suffixes if ending not in COMPRESSED]
    found = ENDINGS.get(endings[-1].lower()) if endings else None
    if found is None:
        raise UserError(f"{source.path}: its ending names no format; write 'format: csv', 'parquet' or 'jsonl'")
    return found


def columns_of(source: Source, wanted: Collection[str] = ()) -> list[str]:
    """Names of the columns, from the head of the file; JSON lines are read on until all of `wanted` are found.

    Raises:
        UserError: there is no such file, it is empty, or it is not what its format says.
    """
    kind = format_of(source)
    if kind == "parquet":
        names: list[str] = _flat_names(_dataset(source).schema)
    else:
        names = _csv_columns(source) if kind == "csv" else _jsonl_columns(source, wanted)
    twice = sorted({name for name in names if names.count(name) > 1 and name in wanted})
    if twice:
        raise UserError(f"{source.path}: column {', '.join(twice)} stands there twice; rename one of them")
    return names


def read_source(source: Source, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a source, all columns or some. Every column of a CSV file is a string column, empty cells null.

    Raises:
        UserError: the file or a column is missing, or the file cannot be read.
    """
    there = columns_of(source, columns or ())
    wanted = list(dict.fromkeys(there if columns is None else columns))
    absent = [name for name in wanted if name not in there]
    if absent:
        raise UserError(f"{source.path}: {say_absent(absent, there)}")
    read = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}[format_of(source)]
    try:
        return read(source, wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{source.path}: {_explain(str(error))}") from None


def batches_of(source: Source) -> Iterator[pa.Table]:
    """All columns of a source, some ten thousand rows at a time, in bounded memory; as `read_source` reads them.

    The columns of JSON lines may differ between the tables, in number and in type.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    batches = {"parquet": _batches_of_parquet, "csv": _batches_of_csv, "jsonl": _batches_of_jsonl}[format_of(source)]
    try:
        yield from batches(source)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{source.path}: {_explain(str(error))}") from None


def batches_between(
    source: Source, columns: Sequence[str], moment: str | None, start: datetime | None, end: datetime | None
) -> Iterator[pa.Table]:
    """Some columns of a source in bounded memory; of Parquet only what its statistics let lie in [start, end).

    Rows outside may be among them: a text file has no statistics, nor has a moment that is a number or words.

    Args:
        source: The source.
        columns: Which columns.
        moment: The column that `start` and `end` are about.
        start: The first moment; None is open.
        end: The first moment behind; None is open.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    if format_of(source) != "parquet":
        for table in batches_of(source):
            absent = [name for name in columns if name not in table.column_names]
            for name in absent:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
            yield pa.table({name: _without_point_zero(table[name]) for name in columns})
        return
    dataset = _dataset(source)
    limits = None
    if (
        moment is not None
        and moment in dataset.schema.names
        and pa.types.is_timestamp(dataset.schema.field(moment).type)
    ):
        limits = _limits(moment, dataset.schema.field(moment).type, start, end)
    for batch in dataset.to_batches(columns=_tops(dataset, columns), filter=limits, batch_size=ROWS):
        yield _flattened(pa.table(batch)).select(columns)


def _limits(moment: str, kind: Any, start: datetime | None, end: datetime | None) -> Any:
    """The filter of a dataset for moments in [start, end); time stamps without a zone are in UTC."""
    found = None
    for bound, compare in ((start, pc.greater_equal), (end, pc.less)):
        if bound is not None:
            told = pa.scalar(bound if kind.tz else bound.replace(tzinfo=None), pa.timestamp("us", kind.tz))
            condition = compare(pc.field(moment), told.cast(kind))
            found = condition if found is None else found & condition
    return found


def head_of(source: Source, size: int = 2**16) -> str:
    """The first characters of a text file, unpacked; the last line may be cut.

    Raises:
        UserError: the file is missing or not UTF-8.
    """
    with _open(source) as file:
        data: bytes = file.read(size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start >= len(data) - 4:
            return data[: error.start].decode("utf-8-sig")
        raise UserError(f"{source.path}: {NOT_UTF8}") from None


def say_absent(absent: Sequence[str], there: Sequence[str]) -> str:
    """The message for columns that are not there."""
    names = ", ".join(f"'{name}'" for name in absent)
    return f"no column {names}; the columns are {', '.join(there)}"


def _explain(error: str) -> str:
    if "UTF8" in error or "utf-8" in error:
        return NOT_UTF8
    mixed = re.search(r"Column\(/(.*)\) changed from (\w+) to (\w+)", error)
    if mixed:
        name, one, other = mixed.groups()
        return f"column '{name}' holds values of type {one} and {other}; write all of them as strings"
    return f"cannot be read: {' '.join(error.split())}"


def _open(source: Source) -> Any:
    """The file opened for bytes, unpacked where its ending says that it is packed."""
    try:
        return fsspec.open(source.path, "rb", compression="infer").open()
    except FileNotFoundError:
        raise UserError(f"{source.path}: no such file; correct 'path' under 'sources'") from None
    except IsADirectoryError:
        raise UserError(f"{source.path}: is a folder; only Parquet may be one, write 'format: parquet'") from None
    except Exception as error:
        # Each store has errors of its own: no driver, no credentials, no network.
        raise UserError(f"{source.path}: cannot be opened: {type(error).__name__}: {error}") from error


@contextmanager
def _streamed(source: Source) -> Iterator[Any]:
    """The file opened for Arrow's readers of text; a local one natively, closed when nothing holds it any more.

    After an error a reader's thread may let go of the file only when the interpreter ends, and if the file is one of
    Python's the process is aborted then: https://github.com/apache/arrow/issues/33975.
    """
    system, path = fsspec.url_to_fs(source.path)
    packed = infer_compression(path)
    if isinstance(system, LocalFileSystem) and packed in (None, "gzip"):
        yield pa.input_stream(path, compression=packed)
    else:
        with _open(source) as file:
            yield file


def _csv_columns(source: Source) -> list[str]:
    with _open(source) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        try:
            names = next(csv.reader(text, delimiter=_delimiter(source)), [])
        except UnicodeDecodeError:
            raise UserError(f"{source.path}: {NOT_UTF8}") from None
    if not names:
        raise UserError(f"{source.path}: is empty; its first line must name the columns")
    return names


def _delimiter(source: Source) -> str:
    tabs = source.delimiter == "," and ".tsv" in PurePosixPath(source.path).suffixes
    return "\t" if tabs else source.delimiter


def _csv_options(source: Source, columns: list[str]) -> tuple[Any, Any]:
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=columns,
        null_values=[""],
        strings_can_be_null=True,
    )
    return convert, pyarrow.csv.ParseOptions(delimiter=_delimiter(source), newlines_in_values=True)


def _read_csv(source: Source, columns: list[str]) -> pa.Table:
    convert, parse = _csv_options(source, columns)
    with _streamed(source) as file:
        table = pyarrow.csv.read_csv(file, pyarrow.csv.ReadOptions(block_size=BLOCK), parse, convert)
    return pa.table({name: _without_point_zero(table[name]) for name in columns})


def _batches_of_csv(source: Source) -> Iterator[pa.Table]:
    convert, parse = _csv_options(source, _csv_columns(source))
    with _streamed(source) as file:
        reader = pyarrow.csv.open_csv(file, pyarrow.csv.ReadOptions(block_size=BLOCK), parse, convert)
        yield from (pa.table(batch) for batch in reader)


def _batches_of_jsonl(source: Source) -> Iterator[pa.Table]:
    with _open(source) as file:
        while lines := file.readlines(BLOCK):
            if content := b"".join(lines).strip():
                yield _flattened(_json_table(content))


def _json_table(content: bytes) -> pa.Table:
    options = pyarrow.json.ReadOptions(block_size=len(content) + 1)
    table = pyarrow.json.read_json(pa.BufferReader(content), options)
    words = pa.schema([pa.field(field.name, _as_words(field.type)) for field in table.schema])
    if words == table.schema:
        return table
    return pyarrow.json.read_json(pa.BufferReader(content), options, pyarrow.json.ParseOptions(explicit_schema=words))


def _batches_of_parquet(source: Source) -> Iterator[pa.Table]:
    for batch in _dataset(source).to_batches(batch_size=ROWS):
        yield _flattened(pa.table(batch))


def _without_point_zero(column: Any) -> Any:
    """'1.0' as '1' where the whole column is so: whole numbers with gaps that a data frame wrote as floats."""
    known = column.drop_null()
    for part in (known.slice(0, 1), known):
        if not (len(part) and pc.all(pc.match_substring_regex(part, r"^-?\d+\.0$")).as_py()):
            return column
    return pc.replace_substring_regex(column, r"\.0$", "")


def _jsonl_columns(source: Source, wanted: Collection[str]) -> list[str]:
    names: dict[str, None] = {}
    with _open(source) as file:
        for number, line in enumerate(file, 1):
            names.update(dict.fromkeys(_flat_keys(_json_object(source, number, line))))
            if number >= LINES and all(name in names for name in wanted):
                break
    if not names:
        raise UserError(f"{source.path}: is empty; write one JSON object per line")
    # A record that is null in some lines is there by its own name too.
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _json_object(source: Source, number: int, line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line) if line.strip() else {}
    except UnicodeDecodeError:
        raise UserError(f"{source.path}: {NOT_UTF8}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{source.path}: line {number} is no JSON object; write one object per line")
    return content


def _flat_keys(content: dict[str, Any]) -> list[str]:
    """The keys of an object, those of objects in it behind a period: user.country."""
    keys: list[str] = []
    for key, value in content.items():
        keys += [f"{key}.{inner}" for inner in _flat_keys(value)] if isinstance(value, dict) and value else [key]
    return keys


def _flat_names(schema: Any) -> list[str]:
    return list(_flattened(schema.empty_table()).column_names)


def _flattened(table: pa.Table) -> pa.Table:
    """The table with the columns of its records in the records' place, each behind a period: user.country."""
    while any(pa.types.is_struct(kind) and kind.num_fields for kind in table.schema.types):
        table = table.flatten()
    return table


def _read_jsonl(source: Source, columns: list[str]) -> pa.Table:
    table = _parse_jsonl(source, None)
    # The parser takes words such as '2024-05-31' for time stamps; here they stay words, whatever they mean.
    words = [
        pa.field(field.name, _as_words(field.type)) for field in table.schema if _as_words(field.type) != field.type
    ]
    if words:
        table = _parse_jsonl(source, pa.schema(words))
    table = _flattened(table).select(columns)
    table.validate(full=True)
    return table


def _parse_jsonl(source: Source, schema: pa.Schema | None) -> pa.Table:
    parse = pyarrow.json.ParseOptions(explicit_schema=schema)
    try:
        with _streamed(source) as file:
            return pyarrow.json.read_json(file, pyarrow.json.ReadOptions(block_size=BLOCK), parse)
    except pa.ArrowNotImplementedError:
        # A column without values in a whole block, then of lists or records: its type is known from all rows only.
        with _open(source) as file:
            data = file.read()
        whole = pyarrow.json.ReadOptions(block_size=len(data) + 1)
        return pyarrow.json.read_json(pa.BufferReader(data), whole, parse)


def _as_words(kind: Any) -> Any:
    """The type with strings in the place of time stamps, however deep."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_words(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_words(field.type)) for field in kind])
    return kind


def _dataset(source: Source) -> Any:
    """The Parquet file, or all Parquet files of a folder."""
    try:
        system, path = fsspec.url_to_fs(source.path)
        there, folder = system.exists(path), system.isdir(path)
    except Exception as error:
        # Each store has errors of its own: no driver, no credentials, no network.
        raise UserError(f"{source.path}: cannot be opened: {type(error).__name__}: {error}") from error
    if not there:
        raise UserError(f"{source.path}: no such file; correct 'path' under 'sources'")
    partitioning = "hive" if folder else None
    try:
        return pyarrow.dataset.dataset(path, filesystem=system, format="parquet", partitioning=partitioning)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{source.path}: is no Parquet file: {' '.join(str(error).split())}") from None


def _read_parquet(source: Source, columns: list[str]) -> pa.Table:
    dataset = _dataset(source)
    return _flattened(dataset.to_table(columns=_tops(dataset, columns))).select(columns)


def _tops(dataset: Any, columns: Sequence[str]) -> list[str]:
    """The columns of the file that hold these, which may be parts of records."""
    names = dataset.schema.names
    return list({top: None for name in columns for top in names if name == top or name.startswith(f"{top}.")})
