"""SRP4CTR: a CTR model over a pre-trained behaviour sequence that never sees the candidate (arXiv 2407.19658).

The paper's text was not at hand in full; what is our own choice is said here: the encoder's own start token, one
querying layer, an MLP over [fields, item stream, queries] as the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.embedding import INITIAL_STD
from components.models.sequence import Attention, FeedForward, SequenceEncoder, SequenceLayer


class ItemLayer(nn.Module):
    """Uni cross-attention: the item's stream asks, the sequence at the same layer answers with its own keys, values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, stream: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
        """The stream [batch, 1, width] after the layer."""
        found: Tensor = self.feed_forward(self.attention(stream, keys, values, there))
        return found


class QueryingTransformer(nn.Module):
    """K learnable queries attend to the encoder's output: [batch, L, width] -> [batch, K, width]."""

    def __init__(self, queries: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * INITIAL_STD)
        # A layer that projects keys and values, and asks with the queries in the place of the tokens.
        self.layer = SequenceLayer(width, heads, dropout)

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """The queries after one layer."""
        asked = self.queries.expand(tokens.shape[0], -1, -1)
        found: Tensor = self.layer(asked, *self.layer.project(tokens), there)
        return found


class SRP4CTR(CollaborativeModel):
    """Encoder, item stream and querying transformer; representation: the last layer of the MLP over all of them.

    The sequence is encoded without the candidate. What it gives, `Encoded`, is the same for all candidates of a
    request: `encode` of one row and `score` of many equal `forward` of the rows side by side.
    """

    reads_history = True

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        width, part = config.embedding_dim, (config.embedding_dim, config.heads, config.dropout)
        self.encoder = SequenceEncoder(layout, config)
        cross = config.encoder_layers if config.cross_attention else 0
        self.item_layers = nn.ModuleList(ItemLayer(*part) for _ in range(cross))
        self.querying = QueryingTransformer(config.queries, *part) if config.queries else None
        streams = (1 if cross else 0) + config.queries
        self.deep = mlp((self.fields + streams) * width, config)
        self.set_width(config.hidden[-1])

    def encode(self, x: Tensor) -> Encoded:
        """What a request's sequence gives, from ids [batch, W]."""
        projected, tokens, there = self.encoder(self.encoder.events.ids(x))
        queries = tokens[:, :0] if self.querying is None else self.querying(tokens, there)
        return projected, queries, there

    def score(self, embedded: Tensor, x: Tensor, encoded: Encoded) -> Tensor:
        """Representations [batch, hidden[-1]] of candidates, for the sequence of each or for one of all of them."""
        projected, queries, there = encoded
        pieces = [embedded.flatten(1)]
        if self.item_layers:
            stream = self.encoder.shown(self.encoder.events.shown(x)).unsqueeze(1)
            for layer, (keys, values) in zip(self.item_layers, projected, strict=True):
                stream = layer(stream, keys, values, there)
            pieces.append(stream.flatten(1))
        pieces.append(queries.flatten(1).expand(x.shape[0], -1))
        found: Tensor = self.deep(torch.cat(pieces, dim=1))
        return found

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The MLP over [fields, item stream, queries], of shape [batch, hidden[-1]]."""
        return self.score(embedded, x, self.encode(x))


#: Keys and values of each layer, the queries [batch, K, width], and which tokens are there [batch, 1 + L].
Encoded = tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]
