"""A user's recent items in a prompt: their titles, the most recent last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.values import to_strings
from components.prompt_transform.words import Strings, join_lists, tidy

JOIN = " | "
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """Titles of all rows in one flat array; those of row i stand at offsets[i] : offsets[i + 1], old to new."""

    titles: Strings
    offsets: Counts

    @classmethod
    def of(cls, column: pa.Array) -> Self:
        """From a list column of the training set; events without a title are left out."""
        flat = tidy(to_strings(pc.list_flatten(column)))
        rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
        there = flat.is_valid().to_numpy(zero_copy_only=False)
        counts = np.bincount(rows[there], minlength=len(column))
        return cls(flat.filter(there), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    @property
    def counts(self) -> Counts:
        """Titles of each row [n]."""
        return np.diff(self.offsets)

    def words(self, keep: Counts) -> Strings:
        """The `keep` [n] most recent titles of each row (there are as many), joined; null for none."""
        ends = np.concatenate([[0], np.cumsum(keep)])
        position = np.arange(ends[-1]) - np.repeat(ends[:-1], keep)
        first = np.repeat(self.offsets[1:] - keep, keep)
        return join_lists(self.titles, [ends, first + position], JOIN)

    def tokens(self, keep: Counts, tokens: Counts) -> Counts:
        """Tokens [n] of the `keep` [n] most recent titles of each row, by those of every title [titles]."""
        total = np.concatenate([[0], np.cumsum(tokens)])
        ends = self.offsets[1:]
        return np.asarray(total[ends] - total[ends - keep])

    def shortened(self, keep: Counts, excess: Counts, tokens: Counts) -> Counts:
        """How many titles of each row [n] to keep so that about `excess` [n] tokens fewer are left.

        Args:
            keep: Titles kept so far [n], at most as many as there are.
            excess: Tokens over the limit [n]; 0 where the row fits.
            tokens: Tokens of every title [titles], the separator's among them.
        """
        rows = np.repeat(np.arange(len(keep)), self.counts)
        age = np.arange(len(rows)) - np.repeat(self.offsets[:-1], self.counts)
        kept = age >= (self.counts - keep)[rows]
        saved = np.concatenate([[0], np.cumsum(np.where(kept, tokens, 0))])
        # What dropping this title and all older ones of its row leaves to be saved.
        before = saved[:-1] - saved[self.offsets[rows]]
        dropped: Any = np.bincount(rows[kept & (before < excess[rows])], minlength=len(keep))
        return np.where(excess > 0, keep - dropped, keep).astype(np.int64)
