"""Each item's text vector as a table of the model: made once from the PLM's embeddings, frozen, and served as it is."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.layout import FieldSlots


class ItemTexts(nn.Module):
    """Vectors of items by the ids of the item's field; zero for padding, unknown items, and before `fill`."""

    vectors: Tensor

    def __init__(self, slots: FieldSlots, width: int) -> None:
        super().__init__()
        self.offset = slots.offset
        # The row before the first id's is that of padding.
        self.register_buffer("vectors", torch.zeros(1 + slots.size, width))

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., width] of global ids [...] of the item's field, or of padding."""
        return functional.embedding((ids - (self.offset - 1)).clamp(min=0), self.vectors)

    def fill(self, ids: Tensor, vectors: Tensor) -> None:
        """Take over the vectors [n, width] of items with these global ids [n]."""
        self.vectors.zero_()
        self.vectors[ids - (self.offset - 1)] = vectors.to(self.vectors)

    def at(self, offset: int) -> Self:
        """The same vectors, read by the ids of another layout, where the item's begin at `offset`."""
        other = copy.deepcopy(self)
        other.offset = offset
        return other
