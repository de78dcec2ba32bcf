"""Batches from arrays that lie on the device as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from components.dataset.training_set import SplitArrays


class Batches:
    """A part of the training set on a device, read in shuffled batches.

    A CTR row is a few dozen small integers: a hundred million rows fit on one device, and a loader of its own
    would cost more than the step that it feeds.
    """

    def __init__(self, arrays: SplitArrays, device: torch.device) -> None:
        self.ids = torch.from_numpy(arrays.ids).to(device)
        self.labels = torch.from_numpy(arrays.labels).to(device)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Ids [size, W], labels [size] and places [size] of one epoch; the rest is left out if it is not alone."""
        order = torch.randperm(len(self), generator=generator).to(self.ids.device)
        # Batch norm cannot take a batch of one row, and a short last batch is a noisy step.
        full = max(len(self) // size * size, min(len(self), size))
        for start in range(0, full, size):
            rows = order[start : start + size]
            yield self.ids[rows], self.labels[rows], rows
