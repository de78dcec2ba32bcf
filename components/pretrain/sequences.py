"""Sequences to pre-train on: each event of the train part once, in batches of about equal length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.dataset.events import moments_of
from components.dataset.spec import EVENT_TIMESTAMP
from components.dataset.training_set import SplitArrays, TrainingSet

Numbers = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]


def tiling_rows(users: Numbers, moments: Numbers, enters: Chosen, length: int) -> Numbers:
    """Rows whose histories lie side by side: of each user one at every `length`-th event, and the last.

    A row's history holds the events before it, `length` at most. So those of the rows before which there were length,
    2 * length, … of a user's events share none; the last row's repeats the few that are needed to fill it. (Of a
    history by label, which holds the last of each, it is so about.)

    Args:
        users: Each row's user [n].
        moments: When each was [n].
        enters: Which of them are events of later rows' histories [n].
        length: Events of a history.
    """
    order = np.lexsort((moments, users))
    starts = np.flatnonzero(np.diff(users[order], prepend=-1))
    counts = np.diff(starts, append=len(users))
    total: Numbers = np.cumsum(enters[order]) - enters[order]
    before: Numbers = total - np.repeat(total[starts], counts)
    last = before == np.repeat(before[starts + counts - 1], counts)
    newest = np.diff(before, append=-1) != 0  # of the rows with the same events, the one furthest from a tie in time
    chosen = newest & (before > 0) & ((before % length == 0) | last)
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
        """Each sequence once, in batches of about equal length, in random order."""
        return (self.batch(rows) for rows in self.shuffled(size, generator))

    def shuffled(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """The sequences of each of these batches, by their numbers."""
        # A little noise on the length, so that the same sequences do not always meet.
        noise = torch.rand(len(self), generator=generator).to(self.ids.device)
        order = torch.argsort(self.lengths + 2.0 * noise)
        groups = list(torch.split(order, size))
        return [groups[number] for number in torch.randperm(len(groups), generator=generator).tolist()]

    def batch(self, rows: Tensor) -> Tensor:
        """Some sequences [batch, L, A], cut to the longest of them."""
        longest = int(self.lengths[rows].max())
        return self.ids[rows, self.ids.shape[1] - longest :]


def split_users(
    data: TrainingSet, arrays: SplitArrays, length: int, held_out: float, seed: int
) -> tuple[Numbers, Numbers]:
    """Rows of the train part to learn from, and those of held-out users."""
    moments, _ = moments_of(data.table("train", [EVENT_TIMESTAMP])[EVENT_TIMESTAMP])
    clicks = data.spec.history is not None and data.spec.history.events == "positive"
    enters = arrays.labels == 1 if clicks else np.ones(len(arrays.labels), dtype=bool)
    rows = tiling_rows(arrays.user_codes, moments, enters, length)
    users = np.unique(arrays.user_codes)
    out = np.random.default_rng(seed).permutation(users)[: max(1, round(len(users) * held_out))]
    held = np.isin(arrays.user_codes[rows], out)
    return rows[~held], rows[held]
