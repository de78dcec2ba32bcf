"""AutoInt: fields attend to each other (Song et al. 2019, arXiv 1810.11921)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp


class InteractingLayer(nn.Module):
    """One multi-head self-attention layer over the fields: [batch, F, width] -> [batch, F, attention_dim].

    Eq. 5: scores of fields m and k are softmax_k <W_q e_m, W_k e_k>, not scaled; eq. 6: their weighted sum of
    W_v e_k; eq. 7: heads side by side; eq. 8: ReLU of the sum with W_res e_m.
    """

    def __init__(self, width: int, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        # Queries, keys, values, residual: one weight, but a product for each. One wide product costs more in the
        # backward pass, where its gradient has to be put together first.
        self.project = nn.Linear(width, 4 * config.attention_dim, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Interacted rows [batch, F, attention_dim]."""
        query, key, value, residual = (functional.linear(rows, part) for part in self.project.weight.chunk(4))
        query, key, value = (self._by_head(part) for part in (query, key, value))
        weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return torch.relu(attended + residual)

    def _by_head(self, rows: Tensor) -> Tensor:
        """[batch, F, attention_dim] -> [batch, heads, F, attention_dim / heads]."""
        split: Tensor = rows.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)


class AutoInt(CollaborativeModel):
    """AutoInt with an MLP beside the attention (AutoInt+, section 5.5).

    Representation: the attention's rows side by side (eq. 9), then the MLP's last hidden layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        widths = [config.embedding_dim] + [config.attention_dim] * (config.layers - 1)
        self.attention = nn.Sequential(*(InteractingLayer(width, config) for width in widths))
        self.deep = mlp(self.fields * config.embedding_dim, config)
        self.set_width(self.fields * config.attention_dim + config.hidden[-1])

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[attention, MLP] of shape [batch, F * attention_dim + hidden[-1]]."""
        del x
        return torch.cat([self.attention(embedded).flatten(1), self.deep(embedded.flatten(1))], dim=1)
