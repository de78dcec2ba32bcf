"""The same data set with another future: everything that happened or became known from a moment on is different."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset.columns import MOMENT
from components.dataset.spec import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    ITEM_KEY,
    LABEL,
    USER_KEY,
)

#: Shares of the rows of the future that are deleted, and of those that come in addition.
DELETED, ADDED = 0.2, 0.3
#: At least so many rows are added, so that a table without a future gets one.
LEAST_ADDED = 20
MARK = "~"
KEPT = frozenset({IMPRESSION_ID, USER_KEY, ITEM_KEY, EVENT_TIMESTAMP, CREATED_TIMESTAMP})
#: New rows happen within so many microseconds from the moment on.
DAY = 86_400_000_000

IMPRESSIONS = "impressions"
#: Impressions that are changed at a time.
ROWS = 1_000_000

Mask = npt.NDArray[np.bool_]
Random = np.random.Generator
Counts = dict[str, int]
Change = Callable[[pa.Table], tuple[pa.Table, Counts]]
ChangeOfKeyed = Callable[[pa.Table, str], tuple[pa.Table, Counts]]


def another_future(validated: Path, target: Path, at: datetime, seed: int = 0) -> dict[str, Counts]:
    """Write validated tables of which rows from `at` on are changed, deleted and added, and the rest is left alone.

    Of the impressions the labels are flipped, the items shuffled among the rows and the context changed; of users and
    items every field is changed. Rows are added at `at` itself and later, for the same users and items; where a table
    says when a row became known, also rows dated before `at` that become known later. A table without time
    stamps holds from the beginning: it only gets new keys. Impressions pass through memory some at a time.

    Returns:
        By table how many rows were changed, deleted and added.
    """
    known = pq.read_table(validated / f"{IMPRESSIONS}.parquet", columns=[IMPRESSION_ID, EVENT_TIMESTAMP])
    draw = np.random.default_rng(seed)
    times = _Times(_micros(pc.min(known[EVENT_TIMESTAMP])), _micros(pa.scalar(at, MOMENT)), draw)
    first = pc.max(known[IMPRESSION_ID]).as_py() + 1
    del known

    def impressions(table: pa.Table) -> tuple[pa.Table, Counts]:
        nonlocal first
        table, counts = _impressions(table, at, times, first)
        first += counts["added"]
        return table, counts

    return _written(validated, target, impressions, lambda table, key: _entities(table, key, at, times))


def no_future(validated: Path, target: Path, at: datetime) -> dict[str, Counts]:
    """Write validated tables without any row from `at` on, as if all that is known ended there; as `another_future`."""

    def cut(table: pa.Table) -> tuple[pa.Table, Counts]:
        late = after(table, at)
        return table.filter(pa.array(~late)), {"changed": 0, "deleted": int(late.sum()), "added": 0}

    return _written(validated, target, cut, lambda table, _: cut(table))


def _written(validated: Path, target: Path, impressions: Change, entities: ChangeOfKeyed) -> dict[str, Counts]:
    """Write the impressions, changed some at a time, and the users and items, if there are any, changed as a whole."""
    target.mkdir(parents=True)
    file, counts = pq.ParquetFile(validated / f"{IMPRESSIONS}.parquet"), Counter[str]()
    with pq.ParquetWriter(target / f"{IMPRESSIONS}.parquet", file.schema_arrow) as writer:
        for batch in file.iter_batches(ROWS):
            table, made = impressions(pa.Table.from_batches([batch]))
            writer.write_table(table)
            counts.update(made)
    found = {IMPRESSIONS: dict(counts)}
    for name, key in (("users", USER_KEY), ("items", ITEM_KEY)):
        if (validated / f"{name}.parquet").is_file():
            table, found[name] = entities(pq.read_table(validated / f"{name}.parquet"), key)
            pq.write_table(table, target / f"{name}.parquet")
    return found


def after(table: pa.Table, at: datetime) -> Mask:
    """Whether each row happened, or became known where the table says when, at `at` or later."""
    late = np.zeros(table.num_rows, dtype=bool)
    for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP):
        if name in table.column_names:
            late |= pc.greater_equal(table[name], pa.scalar(at, table[name].type)).to_numpy()
    return late


@dataclass(frozen=True)
class _Times:
    """Microseconds since 1970 of the first impression and of the moment, and where chance comes from."""

    first: int
    at: int
    draw: Random

    def date(self, table: pa.Table) -> pa.Table:
        """Date the rows from the moment on; where the table says when rows became known, every other one before it."""
        known = self.at + self.draw.integers(0, DAY, table.num_rows)
        known[: table.num_rows // 10] = self.at
        happened = known.copy()
        if CREATED_TIMESTAMP in table.column_names and self.first < self.at:
            happened[1::2] = self.draw.integers(self.first, self.at, len(happened[1::2]))
        if CREATED_TIMESTAMP in table.column_names:
            table = _with(table, CREATED_TIMESTAMP, pa.array(known).cast(MOMENT))
        return _with(table, EVENT_TIMESTAMP, pa.array(happened).cast(MOMENT))


def _micros(moment: Any) -> int:
    return int(moment.cast(pa.int64()).as_py())


def _impressions(table: pa.Table, at: datetime, times: _Times, first: int) -> tuple[pa.Table, Counts]:
    late, draw = after(table, at), times.draw
    past, future = table.filter(pa.array(~late)), table.filter(pa.array(late))
    kept = future.filter(pa.array(draw.random(future.num_rows) >= DELETED))
    changed = _changed(kept)
    changed = _with(changed, ITEM_KEY, changed[ITEM_KEY].take(draw.permutation(changed.num_rows)))
    count = _added(future.num_rows)
    new = _changed(table.take(draw.integers(0, table.num_rows, count)))
    new = _with(new, IMPRESSION_ID, pa.array(np.arange(first, first + count), pa.int64()))
    new = _with(new, LABEL, pa.array(np.ones(count), pa.int8()))
    added = times.date(new)
    counts = {"changed": changed.num_rows, "deleted": future.num_rows - kept.num_rows, "added": count}
    return pa.concat_tables([past, changed, added]), counts


def _entities(table: pa.Table, key: str, at: datetime, times: _Times) -> tuple[pa.Table, Counts]:
    late, draw = after(table, at), times.draw
    past, future = table.filter(pa.array(~late)), table.filter(pa.array(late))
    kept = future.filter(pa.array(draw.random(future.num_rows) >= DELETED))
    changed = _changed(kept)
    count = _added(future.num_rows)
    new = _changed(table.take(draw.integers(0, table.num_rows, count)))
    dated = pc.max(table[EVENT_TIMESTAMP]).as_py().timestamp() > 0 or CREATED_TIMESTAMP in table.column_names
    if dated:
        new = times.date(new)
    else:
        new = _with(new, key, pa.array([f"{MARK}new{number}" for number in range(count)], pa.string()))
    counts = {"changed": changed.num_rows, "deleted": future.num_rows - kept.num_rows, "added": count}
    return pa.concat_tables([past, changed, new]), counts


def _added(rows: int) -> int:
    return max(LEAST_ADDED, round(ADDED * rows))


def _changed(table: pa.Table) -> pa.Table:
    """The table with another value in every cell but keys and times."""
    for name in table.column_names:
        if name not in KEPT:
            table = _with(table, name, _other(table[name], name))
    return table


def _other(column: Any, name: str) -> Any:
    if name == LABEL:
        return pc.subtract(pa.scalar(1, pa.int8()), column)
    if pa.types.is_list(column.type):
        return pa.chunked_array([pa.array([[*(value or []), MARK] for value in column.to_pylist()], column.type)])
    if pa.types.is_floating(column.type):
        return pc.subtract(-1.0, pc.fill_null(column, 0.0))
    if pa.types.is_string(column.type):
        return pc.binary_join_element_wise(pc.fill_null(column, ""), pa.scalar(MARK), "")
    raise TypeError(f"column '{name}' of type {column.type} cannot be changed: validated tables hold none")


def _with(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)
