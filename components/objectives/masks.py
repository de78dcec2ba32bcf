"""What is hidden of an impression: whole fields of its text and of its table row (FLIP, as in the released code)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.dataset.layout import FIRST_VALUE, MASK, PADDING, InputLayout


def draw(there: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Which of each row's places are hidden: floor(ratio * their number), and one at least of a row that has any.

    Args:
        there: Boolean [n, P], the places that may be.
        ratio: Share of a row's places.
        generator: Of the draws, on the CPU.

    Returns:
        Boolean [n, P].
    """
    # What a binary fraction takes away from 10 * 0.3 is put back before it is floored.
    count = (there.sum(1).double() * ratio + 1e-9).floor().clamp(min=1)
    dice = torch.rand(there.shape, generator=generator).to(there.device)
    rank = dice.masked_fill(~there, 2.0).argsort(1).argsort(1)
    return (rank < count.unsqueeze(1)) & there


@dataclass(frozen=True)
class HiddenFields:
    """Ids [n, W] with masks put in, where fields are hidden [n, F], and the id that is to be told of each [n, F]."""

    ids: Tensor
    hidden: Tensor
    truth: Tensor

    def of(self, rows: slice) -> HiddenFields:
        """Those of some of the rows."""
        return HiddenFields(self.ids[rows], self.hidden[rows], self.truth[rows])


class TableMask:
    """Hides whole fields of ids [n, W]; of a history nothing is hidden, and a value that is missing tells nothing."""

    def __init__(self, layout: InputLayout) -> None:
        self.slots = layout.fields
        self.first = torch.tensor([slots.start for slots in layout.fields])
        self.least = torch.tensor([slots.offset + FIRST_VALUE for slots in layout.fields])
        self.masks = torch.tensor([slots.offset + MASK for slots in layout.fields])

    def __call__(self, ids: Tensor, ratio: float, generator: torch.Generator) -> HiddenFields:
        """Hide floor(ratio * fields) fields of each row. Of a field with several values one is drawn to be told."""
        device = ids.device
        truth = ids[:, self.first.to(device)].long()
        hidden = draw(truth >= self.least.to(device), ratio, generator)
        masked = ids.clone()
        for place, slots in enumerate(self.slots):
            rows, columns = hidden[:, place], slice(slots.start, slots.stop)
            if slots.width > 1:
                several = ids[:, columns].long()
                filled = (several != PADDING).sum(1)
                pick = (torch.rand(len(ids), generator=generator).to(device) * filled).long().clamp(max=slots.width - 1)
                truth[:, place] = several.gather(1, pick.unsqueeze(1)).squeeze(1)
            masked[:, columns] = ids[:, columns].masked_fill(rows.unsqueeze(1), PADDING)
            masked[:, slots.start].masked_fill_(rows, int(self.masks[place]))
        return HiddenFields(masked, hidden, truth)
