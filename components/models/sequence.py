"""FG-BERT: a bidirectional transformer over a user's events with all their attributes (SRP4CTR, arXiv 2407.19658)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.errors import UserError
from components.dataset.layout import MASK, InputLayout
from components.models.base import BackboneConfig
from components.models.embedding import INITIAL_STD
from components.models.history import EventRows
from components.models.kernels import Dropout

#: Width of a feed-forward network's hidden layer over its input's.
EXPANSION = 2


def by_head(rows: Tensor, heads: int) -> Tensor:
    """[batch, L, width] -> [batch, heads, L, width / heads]."""
    split: Tensor = rows.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
    return split.transpose(1, 2)


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that cannot share rows of an embedding's width.

    Raises:
        UserError: they do not divide it.
    """
    if width % heads:
        raise UserError(f"model.heads={heads} must divide model.embedding_dim={width}; change one of them")


class FeedForward(nn.Module):
    """LayerNorm(x + Dropout(W_2 GELU(W_1 x + b_1) + b_2))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        normed: Tensor = self.norm(x + self.dropout(self.outer(functional.gelu(self.inner(x)))))
        return normed


class Attention(nn.Module):
    """LayerNorm(x + Dropout(W_o Attention(W_q x, K, V))) over keys and values that are given by head."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
        """Of the shape of x [batch, Q, width]; keys and values are [batch, heads, L, width / heads].

        Of a batch of one, keys and values serve all of x: one sequence for many candidates.
        """
        query = by_head(self.query(x), self.heads)
        mask = there.unsqueeze(1).unsqueeze(1)
        if keys.shape[0] == 1 and x.shape[0] > 1:
            # All candidates' queries look at one sequence: one product, not one for each.
            together = query.transpose(0, 2)  # [Q, heads, batch, width / heads]
            found = functional.scaled_dot_product_attention(together, keys, values, attn_mask=mask).transpose(0, 2)
        else:
            found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        normed: Tensor = self.norm(x + self.dropout(self.output(found.transpose(1, 2).flatten(2))))
        return normed


class SequenceLayer(nn.Module):
    """One transformer layer over the events, whose key and value projections others may use too."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, heads, L, width / heads] of tokens [batch, L, width]."""
        return by_head(self.key(tokens), self.heads), by_head(self.value(tokens), self.heads)

    def forward(self, tokens: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
        """The tokens after the layer, [batch, L, width]."""
        found: Tensor = self.feed_forward(self.attention(tokens, keys, values, there))
        return found


class SequenceEncoder(nn.Module):
    """What pre-training learns: input embeddings, and layers over a history's events.

    A token is the sum of the rows of all attributes of its event and of its position, counted from the most recent
    one. A token of its own stands before the first event, so that a user without any has something to attend to.
    The rows are the encoder's own, apart from those of the model's fields: the pre-trained part is one piece, to be
    frozen or trained.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__()
        self.events = EventRows(layout)
        width = config.embedding_dim
        check_heads(width, config.heads)
        self.table = nn.Embedding(layout.vocabulary_size, width, padding_idx=0)
        self.position = nn.Embedding(self.events.length, width)
        self.start = nn.Parameter(torch.randn(width) * INITIAL_STD)
        self.norm, self.dropout = nn.LayerNorm(width), Dropout(config.dropout)
        self.layers = nn.ModuleList(
            SequenceLayer(width, config.heads, config.dropout) for _ in range(config.encoder_layers)
        )
        with torch.no_grad():
            for table in (self.table, self.position):
                table.weight.normal_(std=INITIAL_STD)
            self.table.weight[0] = 0.0

    def tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Input tokens [batch, 1 + L, width] of events' ids [batch, L, A], and which of them are there."""
        length = ids.shape[1]
        events = self.table(ids).sum(2) + self.position.weight[:length].flip(0)
        start = self.start.expand(ids.shape[0], 1, -1)
        there = functional.pad(ids[:, :, 0] != 0, (1, 0), value=True)
        return self.dropout(self.norm(torch.cat([start, events], dim=1))), there

    def forward(self, ids: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
        """Keys and values of every layer, the last layer's tokens [batch, 1 + L, width], and which are there."""
        tokens, there = self.tokens(ids)
        projected = []
        for layer in self.layers:
            assert isinstance(layer, SequenceLayer)  # noqa: S101 - a ModuleList forgets what it holds
            projected.append(layer.project(tokens))
            tokens = layer(tokens, *projected[-1], there)
        return projected, tokens, there

    def question(self) -> Tensor:
        """What a candidate's token [width] has beside its item: behaviour that is hidden, at the most recent place."""
        hidden = [slots.offset + MASK for slots in self.events.slots[self.events.items :]]
        rows: Tensor = self.table.weight[hidden].sum(0) + self.position.weight[0]
        return rows

    def shown(self, ids: Tensor) -> Tensor:
        """A candidate's token [batch, width] from the ids of its attributes [batch, items].

        It is the token that pre-training knows as an event whose behaviour is to be told.
        """
        token: Tensor = self.norm(self.table(ids).sum(1) + self.question())
        return token
