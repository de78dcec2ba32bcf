"""Which test rows belong to which slice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.spec import ITEM_KEY, FieldSpec, Kind
from components.dataset.training_set import SplitArrays, TrainingSet
from components.dataset.values import to_strings

Mask = npt.NDArray[np.bool_]
#: Share of the items, the rarest first, that are the long tail (SRP4CTR).
LONG_TAIL = 0.2
#: Bins of a number field, by the quartiles of its train values.
QUARTILES = (0.25, 0.5, 0.75)


def slices(data: TrainingSet, part: str, rows: SplitArrays, values: int) -> dict[str, Mask]:
    """Name of each slice and its rows of a part, [n]; a slice may be empty.

    Beside the fixed slices there is one 'field=value' for each of the `values` most frequent values of a field that
    the spec marks with `slice: true`.
    """
    new_user, new_item, seen = rows.user_counts == 0, rows.item_counts == 0, rows.user_counts
    masks = {
        "new_users": new_user,
        "new_items": new_item,
        "cold": new_user | new_item,
        "warm": ~(new_user | new_item),
        "long_tail": (rows.item_counts > 0) & (rows.item_counts <= long_tail_count(_item_counts(data))),
        "interactions_0": seen == 0,
        "interactions_1_5": (seen >= 1) & (seen <= 5),
        "interactions_6_20": (seen >= 6) & (seen <= 20),
        "interactions_over_20": seen > 20,
    }
    for field in data.spec.fields:
        if field.slice:
            masks |= _field_slices(data, part, field, values)
    return masks


def long_tail_count(counts: npt.NDArray[np.int64]) -> int:
    """Train impressions up to which an item belongs to the long tail.

    The rarest items that together are at most a fifth of all items seen in train. Items of one count are in or out
    together; where the rarest count alone is more than a fifth, it is the tail.
    """
    ordered = np.sort(counts)
    values, last = np.unique(ordered, return_index=True)
    reached = np.append(last[1:], len(ordered))
    within = values[reached <= LONG_TAIL * len(ordered)]
    return int(within[-1] if within.size else values[0])


def _item_counts(data: TrainingSet) -> npt.NDArray[np.int64]:
    counted = pc.value_counts(data.table("train", [ITEM_KEY])[ITEM_KEY])
    return np.asarray(counted.field("counts").to_numpy(zero_copy_only=False), dtype=np.int64)


def _field_slices(data: TrainingSet, part: str, field: FieldSpec, values: int) -> dict[str, Mask]:
    column = data.table(part, [field.table_column])[field.table_column]
    if field.kind is Kind.NUMBER:
        train = data.table("train", [field.table_column])[field.table_column]
        return _number_slices(field.name, _floats(train), _floats(column))
    if field.kind is Kind.MULTI:
        owners, column = _flattened(column)
    else:
        owners = np.arange(len(column))
    return _value_slices(field.name, to_strings(column), owners, data.meta["rows"][part], values)


def _flattened(column: Any) -> tuple[npt.NDArray[np.int64], Any]:
    """The row of each value of a column of lists, and the values; a row without values has one that is null."""
    lists = column.combine_chunks()
    empty = pc.equal(pc.fill_null(pc.list_value_length(lists), 0), 0).to_numpy(zero_copy_only=False)
    owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    flat = pa.concat_arrays([pc.list_flatten(lists).cast(pa.string()), pa.nulls(int(empty.sum()), pa.string())])
    return np.concatenate([owners, np.flatnonzero(empty)]).astype(np.int64), flat


def _value_slices(name: str, strings: Any, owners: npt.NDArray[np.int64], rows: int, values: int) -> dict[str, Mask]:
    counted = pc.value_counts(strings)
    table = pa.table({"value": counted.field("values"), "count": counted.field("counts")})
    ordered = table.sort_by([("count", "descending"), ("value", "ascending")])["value"].to_pylist()
    masks = {}
    for value in ordered[:values]:
        found = pc.is_null(strings) if value is None else pc.fill_null(pc.equal(strings, value), False)
        mask = np.zeros(rows, dtype=bool)
        mask[owners[found.to_numpy(zero_copy_only=False)] if len(owners) else owners] = True
        masks[f"{name}={'missing' if value is None else value}"] = mask
    return masks


def _floats(column: Any) -> npt.NDArray[np.float64]:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _number_slices(name: str, train: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> dict[str, Mask]:
    known = train[np.isfinite(train)]
    quartiles = np.unique(np.quantile(known, QUARTILES, method="higher")) if known.size else known
    edges = quartiles[quartiles > known.min()] if known.size else known
    bins = np.where(np.isnan(rows), -1, np.searchsorted(edges, rows, side="right"))
    bounds = ["", *(f"{edge:.6g}" for edge in edges), ""]
    masks = {f"{name}={low}..{high}": bins == i for i, (low, high) in enumerate(pairwise(bounds))}
    missing = {f"{name}=missing": bins == -1} if (bins == -1).any() else {}
    return masks | missing
