"""BST: a transformer over the user's history with the candidate at its end (Chen et al. 2019, arXiv 1905.06874)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig
from components.models.history import Events, HistoryModel, RowScale
from components.models.kernels import Dropout


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by dropout, a residual and a layer norm (eq. 2-6).

    S' = LayerNorm(S + Dropout(MH(S))), F = LayerNorm(S' + Dropout(W_2 LeakyReLU(W_1 S' + b_1) + b_2)).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Tokens [batch, L, width] after the layer; those that are not `there` [batch, L] are not attended to."""
        query, key, value = (self._by_head(part) for part in self.project(tokens).chunk(3, dim=-1))
        mask = there.unsqueeze(1).unsqueeze(1)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = self.norms[0](tokens + self.dropout(self.output(attended.transpose(1, 2).flatten(2))))
        forward = self.outer(functional.leaky_relu(self.inner(tokens)))
        normed: Tensor = self.norms[1](tokens + self.dropout(forward))
        return normed

    def _by_head(self, rows: Tensor) -> Tensor:
        """[batch, L, width] -> [batch, heads, L, width / heads]."""
        split: Tensor = rows.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return split.transpose(1, 2)


class BST(HistoryModel):
    """Transformer layers over the events and the candidate (section 2.2); all tokens go to the MLP (section 2.3).

    A token is a linear map of its attributes' rows side by side. Positions are times (section 2.1): the bucket of the
    time from the event to the impression is among an event's attributes; the candidate has none of those.
    Representation: the last layer of the MLP over the fields and the tokens.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        dim, width = config.embedding_dim, config.attention_dim
        self.token = nn.Linear(self.events.attributes * dim, width, bias=False)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.dropout) for _ in range(config.sequence_layers)
        )

        # Our own addition; without it, what the fields' rows say is learnt late and badly.
        self.scale = RowScale(width)

    @property
    def summary_width(self) -> int:
        """Every event's token and the candidate's."""
        return (self.events.length + 1) * self.config.attention_dim

    def summary(self, events: Events) -> Tensor:
        """The tokens side by side after the layers, zero for an empty slot."""
        missing = events.rows.shape[2] - events.candidate.shape[1]
        candidate = functional.pad(events.candidate, (0, missing)).unsqueeze(1)
        tokens = self.token(torch.cat([events.rows, candidate], dim=1))
        there = functional.pad(events.there, (0, 1), value=True)
        for layer in self.layers:
            tokens = layer(tokens, there)
        kept: Tensor = self.scale(tokens) * there.unsqueeze(-1)
        return kept.flatten(1)
