"""Sequences to pre-train on: each event of the train part once, in batches of about equal length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.dataset.training_set import SplitArrays

Numbers = npt.NDArray[np.int64]


def tiling_rows(users: Numbers, length: int) -> Numbers:
    """Rows whose histories lie side by side: of each user every `length`-th row, and the last.

    A row's history holds the events before it, `length` at most. So those of the rows number length, 2 * length, …
    of a user share no event; the last row's repeats the few that are needed to fill it.

    Args:
        users: Each row's user [n], rows in the order of time.
        length: Events of a history.
    """
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    counts = np.diff(starts, append=len(users))
    rank = np.arange(len(users)) - np.repeat(starts, counts)
    last = rank == np.repeat(counts, counts) - 1
    chosen = (rank > 0) & ((rank % length == 0) | last)
    return np.sort(order[chosen])


class Sequences:
    """Events' ids [n, L, A], left-padded, on a device."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.lengths = (ids[:, :, 0] != 0).sum(1)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Each sequence once, in batches of about equal length, cut to the longest of them, in random order."""
        # A little noise on the length, so that the same sequences do not always meet.
        noise = torch.rand(len(self), generator=generator).to(self.ids.device)
        order = torch.argsort(self.lengths + 2.0 * noise)
        groups = list(torch.split(order, size))
        for number in torch.randperm(len(groups), generator=generator).tolist():
            rows = groups[number]
            longest = int(self.lengths[rows].max())
            yield self.ids[rows, self.ids.shape[1] - longest :]


def split_users(arrays: SplitArrays, length: int, held_out: float, seed: int) -> tuple[Numbers, Numbers]:
    """Rows of the train part to learn from, and those of held-out users."""
    rows = tiling_rows(arrays.user_codes, length)
    users = np.unique(arrays.user_codes)
    out = np.random.default_rng(seed).permutation(users)[: max(1, round(len(users) * held_out))]
    held = np.isin(arrays.user_codes[rows], out)
    return rows[~held], rows[held]
