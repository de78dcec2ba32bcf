"""Multi-attribute cloze over a behaviour sequence: all attributes in, all attributes out (SRP4CTR, section on FG-BERT).

Masks, as in the paper: an item-related one (the item's id together with its attributes) and a behaviour-related one
(rating, label, gap, hour). Their rates and the sampled softmax's proposal are our own choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Attribute:
    """One attribute of an event: its global ids `offset : offset + size`, and whether it is the item's."""

    name: str
    offset: int
    size: int
    of_item: bool


@dataclass(frozen=True)
class Masked:
    """Ids [batch, L, A] with masks put in, and where an attribute is to be told, [batch, L, A]."""

    ids: Tensor
    hidden: Tensor


def mask_events(
    ids: Tensor, attributes: tuple[Attribute, ...], rates: tuple[float, float], mask: int, generator: torch.Generator
) -> Masked:
    """Hide item and behaviour attributes of events, each kind at places of its own.

    Args:
        ids: [batch, L, A], 0 in the first attribute of an empty slot.
        attributes: Of the last axis, in its order.
        rates: Share of the events whose item, and whose behaviour, is hidden.
        mask: Local code that stands for a hidden value.
        generator: Of the draws, on the CPU.
    """
    there = ids[:, :, :1] != 0
    drawn = [torch.rand(ids.shape[:2], generator=generator).to(ids.device) < rate for rate in rates]
    hidden = torch.stack([drawn[0 if one.of_item else 1] for one in attributes], dim=-1) & there & (ids != 0)
    masks = torch.tensor([one.offset + mask for one in attributes], device=ids.device, dtype=ids.dtype)
    return Masked(torch.where(hidden, masks, ids), hidden)


class Cloze(nn.Module):
    """Cross-entropy of each attribute at its hidden places, over the table that the attributes' rows come from.

    Above `full` values, a softmax over the true value and `samples` uniform ones. Uniform draws all have the same
    proposal probability, so the correction of sampled softmax (Jean et al. 2015) is one constant and falls away; a
    draw that is the true value is left out.
    """

    def __init__(self, attributes: tuple[Attribute, ...], table: nn.Embedding, samples: int, full: int = 1024) -> None:
        super().__init__()
        width = table.embedding_dim
        self.attributes, self.samples, self.full = attributes, samples, full
        self.transform = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) for _ in attributes
        )
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def forward(self, tokens: Tensor, ids: Tensor, hidden: Tensor, table: Tensor, generator: torch.Generator) -> Any:
        """The mean loss of each attribute by name, and the share of hidden values that are told; none hidden: absent.

        Args:
            tokens: The encoder's output for the masked events [batch, L, width].
            ids: The true ids [batch, L, A].
            hidden: Where they are to be told.
            table: Rows of all ids [V, width].
            generator: Of the samples, on the CPU.
        """
        losses: dict[str, Tensor] = {}
        for place, attribute in enumerate(self.attributes):
            where = hidden[:, :, place]
            if not bool(where.any()):
                continue
            state = self.transform[place](tokens[where])
            losses[attribute.name] = self._loss(state, ids[:, :, place][where].long(), attribute, table, generator)
        return losses

    def _loss(
        self, state: Tensor, truth: Tensor, attribute: Attribute, table: Tensor, generator: torch.Generator
    ) -> Tensor:
        start, stop = attribute.offset, attribute.offset + attribute.size
        if attribute.size <= self.full:
            logits = state @ table[start:stop].T + self.bias[start:stop]
            return functional.cross_entropy(logits, truth - start)
        drawn = torch.randint(start, stop, (self.samples,), generator=generator).to(state.device)
        true = (state * table[truth]).sum(-1) + self.bias[truth]
        others = state @ table[drawn].T + self.bias[drawn]
        others = others.masked_fill(drawn.unsqueeze(0) == truth.unsqueeze(1), float("-inf"))
        logits = torch.cat([true.unsqueeze(1), others], dim=1)
        return functional.cross_entropy(logits, torch.zeros_like(truth))
