"""What each field's values look like, to compare later runs and served requests with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.sources import Tables
from components.dataset.spec import DatasetSpec, FieldSpec, Kind

TOP = 20
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def profile(spec: DatasetSpec, tables: Tables) -> dict[str, dict[str, Any]]:
    """For each field but the ids: rows, share of empty values, and its distribution by kind.

    category, multi: number of different values, values per row, and the shares (of rows) of the most frequent ones;
    number: mean, standard deviation and quantiles; text: mean number of words. User and item fields count each row
    of their table once; context fields count impressions.
    """
    by_side = {"user": tables.users, "item": tables.items, "context": tables.impressions}
    found = {}
    for field in spec.fields:
        table = by_side[field.side]
        if field.kind is not Kind.ID and table is not None:
            found[field.name] = _profile(field, table[field.name])
    return found


def _profile(field: FieldSpec, column: pa.ChunkedArray) -> dict[str, Any]:
    frame = {"side": field.side, "kind": str(field.kind), "rows": len(column)}
    frame["null_share"] = column.null_count / max(len(column), 1)
    if field.kind is Kind.NUMBER:
        return frame | _numbers(column)
    if field.kind is Kind.TEXT:
        words = pc.mean(pc.list_value_length(pc.utf8_split_whitespace(column.drop_null()))).as_py()
        return frame | {"mean_words": words}
    values = pc.list_flatten(column) if field.kind is Kind.MULTI else column.drop_null()
    return frame | _values(values, max(len(column), 1))


def _numbers(column: pa.ChunkedArray) -> dict[str, Any]:
    numbers = column.drop_null().to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return {"mean": None, "std": None, "quantiles": {}}
    quantiles = np.quantile(numbers, QUANTILES)
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "quantiles": {f"{share:g}": float(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _values(values: pa.ChunkedArray, rows: int) -> dict[str, Any]:
    counts = pa.table({"value": values}).group_by("value").aggregate([([], "count_all")])
    ordered = counts.sort_by([("count_all", "descending"), ("value", "ascending")]).slice(0, TOP)
    return {
        "distinct": counts.num_rows,
        "mean_values": len(values) / rows,
        "top": {row["value"]: row["count_all"] / rows for row in ordered.to_pylist()},
    }
