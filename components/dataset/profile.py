"""How a feature's values were spread in training, and how far those of other rows are spread differently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: The file of a bundle that has the profiles of its training set, by raw feature column.
PROFILES = "profiles.json"
#: Values of a feature that are told apart; the others are one.
VALUES = 20
#: Share of a bin that has none, so that its logarithm exists.
EMPTY = 1e-4


@dataclass(frozen=True)
class FeatureProfile:
    """Shares of a raw feature's bins: of numbers their tenths, of others the most frequent values; sum 1.

    A list counts as each of its values, an empty one as a missing value. Missing values are the bin None where there
    are any; all that is in no bin is the rest, which the last share is for.

    Args:
        edges: Between the bins of numbers, None for other values.
        bins: The names of the bins: a number's place among the edges, or a value.
        shares: Of each bin, and of the rest.
    """

    edges: tuple[float, ...] | None
    bins: tuple[Any, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Self | None:
        """The profile of a column, None where it has no rows."""
        values = _values(column)
        if not len(values):
            return None
        edges = None
        if _is_number(values.type) and values.null_count < len(values):
            numbers = values.drop_null().cast(pa.float64()).to_numpy(zero_copy_only=False)
            edges = tuple(np.unique(np.quantile(numbers, np.arange(1, 10) / 10)).tolist())
        counts = _counts(values, edges)
        common = sorted(counts, key=lambda name: (-counts[name], str(name)))[:VALUES]
        return cls(edges, tuple(common), _shares(counts, common))

    def psi(self, column: pa.ChunkedArray) -> float | None:
        """Population stability index of a column against this profile; None where it has no rows.

        The sum over bins of (p - q) ln(p / q). By custom below 0.1 nothing has changed, above 0.25 much has.
        """
        values = _values(column)
        if not len(values):
            return None
        found = _shares(_counts(values, self.edges), self.bins)
        pairs = [(max(p, EMPTY), max(q, EMPTY)) for p, q in zip(self.shares, found, strict=True)]
        return math.fsum((q - p) * math.log(q / p) for p, q in pairs)

    def to_json(self) -> dict[str, Any]:
        """The profile as plain JSON content."""
        return {"edges": self.edges, "bins": self.bins, "shares": self.shares}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The profile that `to_json` described."""
        edges = content["edges"]
        return cls(None if edges is None else tuple(edges), tuple(content["bins"]), tuple(content["shares"]))


def _values(column: Any) -> Any:
    """A column's values in one array, null where one is missing; those of lists one by one."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return _whole(column)
    empty = pc.sum(pc.equal(pc.list_value_length(column).fill_null(0), 0)).as_py() or 0
    flat = _whole(pc.list_flatten(column))
    return pa.concat_arrays([flat, pa.nulls(empty, flat.type)])


def _whole(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _counts(values: Any, edges: tuple[float, ...] | None) -> dict[Any, int]:
    if edges is None:
        counted = pc.value_counts(values if pa.types.is_null(values.type) else values.cast(pa.string()))
        return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
    numbers = values.cast(pa.float64()).drop_null().to_numpy(zero_copy_only=False)
    places, counts = np.unique(np.searchsorted(edges, numbers, side="right"), return_counts=True)
    found: dict[Any, int] = dict(zip(places.tolist(), counts.tolist(), strict=True))
    return {**found, None: values.null_count} if values.null_count else found


def _shares(counts: Mapping[Any, int], bins: Any) -> tuple[float, ...]:
    total = sum(counts.values())
    found = [counts.get(name, 0) / total for name in bins]
    return (*found, max(0.0, 1 - math.fsum(found)))
