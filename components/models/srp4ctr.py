"""SRP4CTR: a CTR model over a pre-trained behaviour sequence that never sees the candidate (arXiv 2407.19658).

The paper's text was not at hand in full; what is our own choice is said here: the encoder's own start token, one
querying layer, an MLP over [fields, item stream, queries] as the head.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from components.dataset.layout import CANDIDATE, REQUEST, InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.embedding import INITIAL_STD
from components.models.folding import Folding, SplitLinear, rows_of
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

    def fold(self) -> Folding:
        """Everything of the sequence is the request's; each item asks it."""
        return FoldedSRP4CTR(self)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The MLP over [fields, item stream, queries], of shape [batch, hidden[-1]]."""
        return self.score(embedded, x, self.encode(x))


#: Keys and values of each layer, the queries [batch, K, width], and which tokens are there [batch, 1 + L].
Encoded = tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]


class FoldedSRP4CTR(Folding):
    """The sequence once per request; parts of an item: its share of the MLP's first layer [n, hidden[0]], its token.

    The encoder reads the ids of the request's layout, the item's token those of the items': each has the rows of
    the encoder's table that it needs.
    """

    def __init__(self, model: SRP4CTR) -> None:
        super().__init__(model)
        encoder, width = model.encoder, model.config.embedding_dim
        request, candidate = model.layout.of(REQUEST), model.layout.of(CANDIDATE)
        self.encoder, self.item_layers, self.querying = copy.deepcopy((encoder, model.item_layers, model.querying))
        self.encoder.table = rows_of(encoder.table, model.layout, request)
        self.tokens = rows_of(encoder.table, model.layout, candidate)
        seen = [request.field(slots.name) for slots in encoder.events.slots]
        places = [slots.start + event for event in range(encoder.events.length) for slots in seen]
        self.encoder.events.columns = torch.tensor(places)
        shown = [model.layout.fields[place] for place in encoder.events.fields.tolist()]
        self.shown = [candidate.field(slots.name).start for slots in shown]
        first = model.deep[0]
        assert isinstance(first, nn.Linear)  # noqa: S101  (so `mlp` begins)
        of_fields = model.fields * width
        self.fields = SplitLinear(first.weight[:, :of_fields], first.bias, self.sides)
        self.streams = nn.Parameter(first.weight[:, of_fields:].detach().T.contiguous())
        self.rest = model.deep[1:]
        self.output = nn.Parameter(model.head.weight.detach().T.contiguous())

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says; without cross-attention there is no token."""
        hidden = self.fields.item(self.item_rows(ids))
        if not self.item_layers:
            return (hidden,)
        token: Tensor = self.encoder.norm(self.tokens(ids[:, self.shown]).sum(1))
        return hidden, token

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        hidden, *token = parts
        projected, tokens, there = self.encoder(self.encoder.events.ids(ids))
        queries = tokens[:, :0] if self.querying is None else self.querying(tokens, there)
        of_queries = queries.flatten(1) @ self.streams[self.streams.shape[0] - queries.shape[1] * queries.shape[2] :]
        hidden = hidden + (self.fields.request(self.request_rows(ids)) + of_queries)
        if token:
            stream = token[0].unsqueeze(1)
            for layer, (keys, values) in zip(self.item_layers, projected, strict=True):
                stream = layer(stream, keys, values, there)
            hidden = hidden + stream.flatten(1) @ self.streams[: stream.shape[2]]
        found: Tensor = self.rest(hidden) @ self.output
        return found
