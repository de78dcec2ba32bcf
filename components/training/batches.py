"""Batches from arrays that lie on the device as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from components.dataset.training_set import SplitArrays
from components.training.group import Group


class Batches:
    """A part of the training set on a device, read in shuffled batches.

    A CTR row is a few dozen small integers: a hundred million rows fit on one device, and a loader of its own
    would cost more than the step that it feeds.
    """

    def __init__(self, arrays: SplitArrays, group: Group) -> None:
        self.group = group
        self.ids = torch.from_numpy(arrays.ids).to(group.device)
        self.labels = torch.from_numpy(arrays.labels).to(group.device)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def shuffled(self, size: int, generator: torch.Generator, skip: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A process's part, ids [n, W], labels [n] and places [n], of each batch of one epoch.

        The rest that fills no batch is left out if it is not alone.

        Args:
            size: Rows of a batch, those of all processes together; all rows where there are fewer.
            generator: Of the order, in the same state in every process.
            skip: Batches at the epoch's beginning that have been read before.
        """
        order = torch.randperm(len(self), generator=generator).to(self.ids.device)
        # Batch norm cannot take a batch of one row, and a short last batch is a noisy step.
        full = max(len(self) // size * size, min(len(self), size))
        for start in range(skip * size, full, size):
            rows = order[start : start + size]
            rows = rows[self.group.share(len(rows))]
            yield self.ids[rows], self.labels[rows], rows
