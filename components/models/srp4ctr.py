"""SRP4CTR: a CTR model over a pre-trained behaviour sequence that never sees the candidate (arXiv 2407.19658).

The paper's text was not at hand in full; what is our own choice is said here: the encoder's own start token, one
querying layer, an MLP over [fields, item stream, queries] as the head, the learnt scale of both before it, and an item
stream that begins as the pre-trained layers themselves.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.layout import CANDIDATE, REQUEST, InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.embedding import INITIAL_STD
from components.models.folding import Folding, SplitLinear, rows_of
from components.models.history import RowScale
from components.models.sequence import Attention, FeedForward, SequenceEncoder, SequenceLayer


class ItemLayer(nn.Module):
    """Uni cross-attention: the item's stream asks, the sequence at the same layer answers with its own keys, values.

    A sink is one more key and value, learnt and the same for everyone: an item that no event has to do with can look
    there and away from the events.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, sink: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)
        self.sink = nn.Parameter(torch.zeros(2, heads, 1, width // heads)) if sink else None

    def forward(self, stream: Tensor, keys: Tensor, values: Tensor, there: Tensor) -> Tensor:
        """The stream [batch, 1, width] after the layer."""
        if self.sink is not None:
            keys, values = (
                torch.cat([own.expand(given.shape[0], -1, -1, -1), given], dim=2)
                for own, given in zip(self.sink, (keys, values), strict=True)
            )
            there = functional.pad(there, (1, 0), value=True)
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
        cross = config.encoder_layers if config.cross_attention != "none" else 0
        sink = config.cross_attention == "sink"
        self.item_layers = nn.ModuleList(ItemLayer(*part, sink=sink) for _ in range(cross))
        self.querying = QueryingTransformer(config.queries, *part) if config.queries else None
        streams = (1 if cross else 0) + config.queries
        self.scale = RowScale(streams * width)
        self.deep = mlp((self.fields + streams) * width, config)
        self.set_width(config.hidden[-1])

    def take_over(self) -> None:
        """Let the item's stream begin as the pre-trained layers: its token is an event whose behaviour they tell."""
        for own, layer in zip(self.item_layers, self.encoder.layers, strict=False):
            assert isinstance(own, ItemLayer) and isinstance(layer, SequenceLayer)  # noqa: S101  (a ModuleList)
            own.attention.load_state_dict(layer.attention.state_dict())
            own.feed_forward.load_state_dict(layer.feed_forward.state_dict())

    def encode(self, x: Tensor) -> Encoded:
        """What the requests' sequences give, from ids [batch, W].

        In evaluation each sequence is encoded once for all of its rows; in training every row draws its own dropout.
        """
        ids = self.encoder.events.ids(x)
        if self.training or torch.compiler.is_exporting():
            return self._encoded(ids)
        different, place = torch.unique(ids.flatten(1), dim=0, return_inverse=True)
        projected, queries, there = self._encoded(different.view(-1, *ids.shape[1:]))
        return [(keys[place], values[place]) for keys, values in projected], queries[place], there[place]

    def _encoded(self, ids: Tensor) -> Encoded:
        projected, tokens, there = self.encoder(ids)
        return projected, self._asked(tokens, there), there

    def _asked(self, tokens: Tensor, there: Tensor) -> Tensor:
        """The queries [batch, K, width] after the encoder's output."""
        return tokens[:, :0] if self.querying is None else self.querying(tokens, there)

    def score(self, embedded: Tensor, x: Tensor, encoded: Encoded) -> Tensor:
        """Representations [batch, hidden[-1]] of candidates, for the sequence of each or for one of all of them."""
        projected, queries, there = encoded
        if not self.item_layers:
            return self._read(embedded, queries[:, :0], queries)
        stream = self._shown(x)
        for layer, (keys, values) in zip(self.item_layers, projected, strict=True):
            stream = layer(stream, keys, values, there)
        return self._read(embedded, stream, queries)

    def _shown(self, x: Tensor) -> Tensor:
        """The candidates' tokens [batch, 1, width]."""
        return self.encoder.shown(self.encoder.events.shown(x)).unsqueeze(1)

    def _read(self, embedded: Tensor, stream: Tensor, queries: Tensor) -> Tensor:
        """The MLP over [fields, item stream, queries]."""
        streams = torch.cat([stream.flatten(1), queries.flatten(1).expand(embedded.shape[0], -1)], dim=1)
        found: Tensor = self.deep(torch.cat([embedded.flatten(1), self.scale(streams)], dim=1))
        return found

    def _together(self, embedded: Tensor, x: Tensor) -> Tensor:
        """Full cross-attention: the candidate is a token among the events, which see it at every layer."""
        (tokens, there), stream = self.encoder.tokens(self.encoder.events.ids(x)), self._shown(x)
        all_there = functional.pad(there, (0, 1), value=True)
        for layer, own in zip(self.encoder.layers, self.item_layers, strict=True):
            assert isinstance(layer, SequenceLayer)  # noqa: S101  (a ModuleList forgets what it holds)
            keys, values = layer.project(torch.cat([tokens, stream], dim=1))
            tokens, stream = layer(tokens, keys, values, all_there), own(stream, keys, values, all_there)
        return self._read(embedded, stream, self._asked(tokens, there))

    def fold(self) -> Folding | None:
        """Everything of the sequence is the request's; each item asks it. None if the sequence sees the item."""
        return None if self.config.cross_attention == "full" else FoldedSRP4CTR(self)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The MLP over [fields, item stream, queries], of shape [batch, hidden[-1]]."""
        if self.config.cross_attention == "full":
            return self._together(embedded, x)
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
        self.question = nn.Parameter(encoder.question().detach())
        seen = [request.field(slots.name) for slots in encoder.events.slots]
        places = [slots.start + event for event in range(encoder.events.length) for slots in seen]
        self.encoder.events.columns = torch.tensor(places)
        shown = [model.layout.fields[place] for place in encoder.events.fields.tolist()]
        self.shown = [candidate.field(slots.name).start for slots in shown]
        first = model.deep[0]
        assert isinstance(first, nn.Linear)  # noqa: S101  (so `mlp` begins)
        of_fields = model.fields * width
        self.fields = SplitLinear(first.weight[:, :of_fields], first.bias, self.sides)
        scale = model.scale.weight.detach().unsqueeze(1)
        self.streams = nn.Parameter(first.weight[:, of_fields:].detach().T * scale)
        self.rest = model.deep[1:]
        self.output = nn.Parameter(model.head.weight.detach().T.contiguous())

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says; without cross-attention there is no token."""
        hidden = self.fields.item(self.item_rows(ids))
        if not self.item_layers:
            return (hidden,)
        token: Tensor = self.encoder.norm(self.tokens(ids[:, self.shown]).sum(1) + self.question)
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
