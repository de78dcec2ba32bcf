"""What a column's values say about its use: that it gives the label away, or that nothing can be learnt from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.sources import Tables
from components.dataset.spec import ITEM_KEY, LABEL, USER_KEY, DatasetSpec, FieldSpec, Kind
from components.dataset.values import to_strings

#: Rows looked at, evenly spaced.
ROWS = 200_000
#: Fewer rows, or fewer of one label, tell nothing.
LEAST_ROWS, LEAST_OF_A_LABEL = 100, 10
#: AUC of a single column from which on it is taken for a leak: honest models of clicks reach .9 at most.
LEAK = 0.97
#: Shares of the rows from which on a column is almost empty, or its values almost all different.
EMPTY, DIFFERENT = 0.95, 0.9
#: Quantile bins of a number when it is held against the label.
BINS = 64
FOLDS = 2
#: A column is filled only for positives if so many of its values are of them, which chance would do this seldom.
PURE, CHANCE = 0.99, 1e-6

Labels = npt.NDArray[np.int8]


def warnings(spec: DatasetSpec, tables: Tables) -> Iterator[str]:
    """What the validated tables say against the fields of a spec, each with what to write."""
    log = spread(tables.impressions)
    labels = log[LABEL].to_numpy().astype(np.int8)
    for field in spec.fields:
        table = {"user": tables.users, "item": tables.items, "context": log}[field.side]
        if field.kind is Kind.ID or table is None or field.known_after_impression:
            continue
        column = spread(table)[field.name]
        idle = useless(column, field.kind)
        if idle:
            yield f"field '{field.name}' (column '{field.source_column}') {idle}"
        seen = _beside(field, column if field.side == "context" else table[field.name], table, log)
        strength = association(seen, labels, field.kind)
        if strength is not None and strength >= LEAK:
            yield (
                f"field '{field.name}' (column '{field.source_column}') alone tells the label with AUC {strength:.3f}; "
                "if it is known only after the impression, write 'known_after_impression: true'"
            )
            continue
        share = only_for_positives(seen, labels)
        if share is not None:
            yield (
                f"field '{field.name}' (column '{field.source_column}') is filled in {share:.1%} of the rows, "
                "(nearly) all of them positive; if it is known only after the impression, write "
                "'known_after_impression: true'"
            )


def spread(table: pa.Table, rows: int = ROWS) -> pa.Table:
    """At most `rows` of the rows, evenly spaced."""
    if table.num_rows <= rows:
        return table
    return table.take(np.linspace(0, table.num_rows - 1, rows).astype(np.int64))


def useless(column: Any, kind: Kind) -> str | None:
    """Why nothing can be learnt from a column, if so: '... is constant'."""
    rows = len(column)
    if rows == 0 or column.null_count == rows:
        return "is empty; leave it out"
    if column.null_count >= EMPTY * rows:
        return f"is empty in {column.null_count / rows:.1%} of the rows; leave it out"
    values = column.drop_null()
    if kind is Kind.MULTI:
        values = pc.list_flatten(values)
    different = pc.count_distinct(values).as_py()
    if different == 1:
        return f"is constant ({values[0].as_py()!r}); leave it out"
    if kind is Kind.CATEGORY and rows >= LEAST_ROWS and different >= DIFFERENT * len(values):
        share = f"{different / len(values):.0%}"
        return f"has a value of its own in {share} of the rows; write kind: text if it is words, or leave it out"
    return None


def association(column: Any, labels: Labels, kind: Kind) -> float | None:
    """AUC with which the column alone tells the label of rows that it was not fitted on; None for too few rows.

    The mean label of each value (or bin) in one half of the rows scores the other half, and the other way round:
    a column whose values are all different tells nothing, as it must. A missing value counts as one. Of a text
    only whether it is there is looked at.
    """
    positives = int(labels.sum())
    if len(labels) < LEAST_ROWS or min(positives, len(labels) - positives) < LEAST_OF_A_LABEL:
        return None
    codes, size = _codes(column, kind)
    # A shuffle with a seed of its own: rows of a log are sorted by time, or by user, or by label.
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    scores = np.empty(len(labels))
    for number in range(FOLDS):
        fitted, held = fold != number, fold == number
        mean = labels[fitted].mean()
        hits = np.bincount(codes[fitted], labels[fitted], size)
        scores[held] = ((hits + mean) / (np.bincount(codes[fitted], minlength=size) + 1))[codes[held]]
    return auc(scores, labels)


def only_for_positives(column: Any, labels: Labels) -> float | None:
    """The share of the rows in which the column has a value, if these are positive all but without exception.

    Such a column is written by what follows a click: an order's value, a reason for leaving. Its AUC may be low, since
    most positives are without it too. None for any other column, and where chance could have done it.
    """
    filled = column.is_valid().to_numpy().astype(bool)
    if pa.types.is_list(column.type):
        filled &= pc.fill_null(pc.list_value_length(column), 0).to_numpy() > 0
    elif pa.types.is_floating(column.type):
        filled &= ~np.isnan(pc.fill_null(column, np.nan).to_numpy())
    count, rate = int(filled.sum()), float(labels.mean()) if len(labels) else 0.0
    if count < LEAST_OF_A_LABEL or labels[filled].mean() < PURE or rate**count > CHANCE:
        return None
    return count / len(labels)


def auc(scores: npt.NDArray[np.float64], labels: Labels) -> float:
    """Area under the ROC curve; ties count half (Mann and Whitney 1947)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives = int(labels.sum())
    negatives = len(labels) - positives
    above = float(ranks[labels == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def _codes(column: Any, kind: Kind) -> tuple[npt.NDArray[np.int64], int]:
    """A small whole number for each row's value, and how many there are."""
    if kind is Kind.TEXT:
        return column.is_valid().to_numpy().astype(np.int64), 2
    if kind is Kind.NUMBER:
        numbers = column.to_numpy().astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        edges = finite
        if len(finite):
            edges = np.unique(np.quantile(finite, np.arange(1, BINS) / BINS, method="higher"))
        bins = np.searchsorted(edges, numbers, side="right") + 1
        return np.where(np.isfinite(numbers), bins, 0), len(edges) + 2
    words = pc.binary_join(column, "|") if kind is Kind.MULTI else to_strings(column)
    encoded = words.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), len(encoded.dictionary) + 1


def _beside(field: FieldSpec, column: Any, table: pa.Table, log: pa.Table) -> Any:
    """The field's value of each impression's user or item; the last one, where a key has several."""
    if field.side == "context":
        return column
    key = USER_KEY if field.side == "user" else ITEM_KEY
    backwards = np.arange(table.num_rows - 1, -1, -1)
    place = pc.index_in(log[key], table[key].take(backwards).combine_chunks())
    return column.take(backwards).take(place)
