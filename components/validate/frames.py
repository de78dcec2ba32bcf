"""The validated tables as the data frames that Great Expectations looks at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.sources import Tables
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, USER_KEY, DatasetSpec, Kind

#: Columns added to the impressions: whether the user (item) has a row at all, and one dated before the impression.
KNOWN = {"user": "user_known", "item": "item_known"}
DATED = {"user": "user_known_in_time", "item": "item_known_in_time"}
KEYS = {"user": USER_KEY, "item": ITEM_KEY}


def frames(spec: DatasetSpec, tables: Tables, max_rows: int) -> dict[str, pd.DataFrame]:
    """A data frame for each table, of at most `max_rows` rows, evenly spaced.

    Lists become words joined by '|'. The impressions get the columns of `KNOWN` and `DATED` as 0.0 and 1.0 for each
    entity that has a table (with moments of its own).
    """
    impressions = _thinned(tables.impressions, max_rows)
    for side, table in (("user", tables.users), ("item", tables.items)):
        if table is not None:
            for name, column in _known(spec, side, impressions, table).items():
                impressions = impressions.append_column(name, column)
    found: Mapping[str, pa.Table | None] = {"impressions": impressions, "users": tables.users, "items": tables.items}
    return {name: _frame(spec, _thinned(table, max_rows)) for name, table in found.items() if table is not None}


def is_dated(spec: DatasetSpec, side: str) -> bool:
    """Whether the rows of the user's or item's table have moments of their own."""
    source = spec.sources.users if side == "user" else spec.sources.items
    return source is not None and source.timestamp is not None


def _thinned(table: pa.Table, max_rows: int) -> pa.Table:
    if table.num_rows <= max_rows:
        return table
    return table.take(np.linspace(0, table.num_rows - 1, max_rows).astype(np.int64))


def _known(spec: DatasetSpec, side: str, impressions: pa.Table, table: pa.Table) -> dict[str, pa.ChunkedArray]:
    key = KEYS[side]
    first = table.group_by(key).aggregate([(EVENT_TIMESTAMP, "min")])
    place = pc.index_in(impressions[key], first[key].combine_chunks())
    known = {KNOWN[side]: pc.is_valid(place).cast(pa.float64())}
    if is_dated(spec, side):
        since = first[f"{EVENT_TIMESTAMP}_min"].take(place)
        # Null where the key has no row at all: that is told by the other column.
        known[DATED[side]] = pc.less_equal(since, impressions[EVENT_TIMESTAMP]).cast(pa.float64())
    return known


def _frame(spec: DatasetSpec, table: pa.Table) -> pd.DataFrame:
    for field in spec.fields:
        if field.kind is Kind.MULTI and field.name in table.column_names:
            place = table.column_names.index(field.name)
            table = table.set_column(place, field.name, pc.binary_join(table[field.name], "|"))
    frame: pd.DataFrame = table.to_pandas()
    return frame
