"""AutoInt whose candidate looks at what the user liked and disliked lately, by ids and, if it has any, by texts."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.dataset.errors import UserError
from components.dataset.events import DERIVED, HISTORY_PREFIX, LABELS
from components.dataset.layout import CANDIDATE, FIRST_VALUE, PADDING, REQUEST, InputLayout
from components.dataset.spec import LABEL
from components.models.autoint import InteractingLayer
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.folding import Folding, SplitLinear, output_weights, rows_of
from components.models.history import EventRows
from components.models.item_texts import ItemTexts
from components.models.sequence import by_head, check_heads

#: What a moment says (the gap, the hour) is left out: it gained nothing and costs as much as all the rest.
LEFT_OUT = frozenset(HISTORY_PREFIX + name for name in DERIVED if name != LABEL)
#: Stands for a score that is not there: the softmax of it is zero.
NOWHERE = -1e9


class Seen(NamedTuple):
    """A batch's histories, or the one of a request, before any candidate looks at them.

    keys, values: [batch, heads, L, dim / heads]; kinds: [batch, 2, L], which events were liked and which disliked;
    texts: [batch, L, T], of length 1 or zero; text_rows: [batch, L, dim], what the input holds of each text.
    """

    keys: Tensor
    values: Tensor
    kinds: Tensor
    texts: Tensor
    text_rows: Tensor


class TargetAttention(nn.Module):
    """What a candidate finds among the liked and among the disliked events, one row each.

    Scaled dot products by head. Beside the events stands a score of zero whose value is zero: a history that has
    nothing to say of the candidate says nothing, and an empty one gives a zero row.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def read(self, events: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of events' rows [batch, L, width]."""
        return by_head(self.key(events), self.heads), by_head(self.value(events), self.heads)

    def forward(self, asked: Tensor, keys: Tensor, values: Tensor, kinds: Tensor) -> Tensor:
        """Rows [batch, 2, width] of queries [batch, width]; keys, values and kinds may be of one history for all."""
        query = asked.unflatten(1, (self.heads, -1)) / math.sqrt(keys.shape[-1])  # type: ignore[no-untyped-call]
        # [batch, heads, 1, L], then [batch, heads, 2, L].
        scores = _each(query, keys.transpose(-1, -2)).unsqueeze(2)
        scores = scores.masked_fill(~kinds.unsqueeze(1), NOWHERE)
        weights = torch.softmax(functional.pad(scores, (0, 1)), dim=-1)[..., :-1]
        found = [_each(of_kind, values) for of_kind in weights.unbind(2)]
        return torch.stack(found, dim=1).flatten(2)


def _each(rows: Tensor, matrices: Tensor) -> Tensor:
    """[batch, heads, k] times [batch or 1, heads, k, m], by batch and head: one product for one history's matrices."""
    if matrices.shape[0] == 1 and rows.shape[0] > 1:
        return (rows.transpose(0, 1) @ matrices[0]).transpose(0, 1)
    return (rows.unsqueeze(2) @ matrices).squeeze(2)


class TextAttention(nn.Module):
    """What a candidate's text finds among the texts of the liked and of the disliked events.

    Weights are a softmax over cosines, with a sharpness that is learnt by kind. Beside the weighted rows it gives the
    largest and the mean cosine of each kind, which say how near the history comes at all; zero without events.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((2,), 10.0))

    def forward(self, asked: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Rows [batch, 2, width] and cosines [batch, 4] of candidates' texts [batch, T]."""
        cosines = _each(asked.unsqueeze(1), seen.texts.transpose(1, 2).unsqueeze(1))  # [batch, 1, L]
        there = seen.kinds.to(cosines.dtype)
        scores = (cosines * self.sharpness.unsqueeze(-1)).masked_fill(~seen.kinds, NOWHERE)
        weights = torch.softmax(scores, dim=-1) * there
        rows = _each(weights, seen.text_rows.unsqueeze(1)) if seen.text_rows.shape[0] > 1 else weights @ seen.text_rows
        count = there.sum(2)
        nearest = cosines.masked_fill(~seen.kinds, NOWHERE).amax(2)
        nearest = torch.where(count > 0, nearest, 0.0)
        mean = (cosines * there).sum(2) / count.clamp(min=1)
        return rows, torch.cat([nearest, mean], dim=1)


class AutoIntHistory(CollaborativeModel):
    """AutoInt over the fields' rows and over what the candidate finds in the user's history.

    An event's row is the sum of its attributes' rows; whether it was liked is its label. With `text_rows` the frozen
    text vector of each item lies in the model, projected to a row of the input; the candidate's then also looks for
    its like among the texts of the history. The vectors are made before training; served is a table of numbers by
    item, nothing that could encode a text.

    Representation: the attention's rows side by side, then the MLP's last hidden layer, as in AutoInt.
    """

    reads_history: ClassVar[bool] = True

    kept: Tensor
    texts: ItemTexts | None

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        dim = config.embedding_dim
        self.events = EventRows(layout)
        names = [slots.name for slots in self.events.slots]
        if LABELS not in names:
            raise UserError(
                "the history tells no likes from dislikes, for its events have no label; run retrieve again"
            )
        self.label = names.index(LABELS)
        self.liked = self.events.slots[self.label].offset + FIRST_VALUE + 1
        #: Place among the fields of what identifies the candidate, by which it asks.
        self.place = int(self.events.fields[0])
        kept = [place for place, name in enumerate(names) if name not in LEFT_OUT]
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.history = TargetAttention(dim, config.heads)
        self.texts = ItemTexts(layout.fields[self.place], config.text_rows) if config.text_rows else None
        self.rows = self.fields + 2
        if config.text_rows:
            self.text_row = nn.Linear(config.text_rows, dim)
            self.alike = TextAttention()
            self.rows += 3
        widths = [dim] + [config.attention_dim] * (config.layers - 1)
        self.attention = nn.Sequential(*(InteractingLayer(width, config) for width in widths))
        self.deep = mlp(self.rows * dim + (4 if config.text_rows else 0), config)
        self.set_width(self.rows * config.attention_dim + config.hidden[-1])

    def read(self, ids: Tensor, table: nn.Embedding, texts: ItemTexts | None) -> Seen:
        """What events' ids [batch, L, A] hold, before a candidate asks."""
        there = ids[:, :, 0] != PADDING
        liked = ids[:, :, self.label] == self.liked
        kinds = torch.stack([there & liked, there & ~liked], dim=1)
        events = table(ids.index_select(2, self.kept)).sum(2)
        keys, values = self.history.read(events)
        if texts is None:
            nothing = events[:, :, :0]
            return Seen(keys, values, kinds, nothing, nothing)
        vectors = texts(ids[:, :, 0])
        return Seen(keys, values, kinds, vectors, self.text_row(vectors))

    def find(self, query: Tensor, text: Tensor | None, seen: Seen) -> tuple[Tensor, Tensor]:
        """What candidates find: rows [batch, 2 or 5, dim] behind those of the fields, and cosines [batch, 0 or 4].

        Args:
            query: The candidates' projected ids [batch, dim].
            text: Their text vectors [batch, T], if there are any.
            seen: The history of each, or one of all.
        """
        found = self.history(query, seen.keys, seen.values, seen.kinds)
        if text is None:
            return found, query[:, :0]
        alike, cosines = self.alike(text, seen)
        return torch.cat([found, self.text_row(text).unsqueeze(1), alike], dim=1), cosines

    def asked(self, rows: Tensor) -> Tensor:
        """The query [batch, dim] of candidates by their ids' rows [batch, dim]."""
        query: Tensor = self.history.query(rows)
        return query

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[attention, MLP] over all rows, of shape [batch, rows * attention_dim + hidden[-1]]."""
        seen = self.read(self.events.ids(x), self.embedding.table, self.texts)
        text = None if self.texts is None else self.texts(self.events.shown(x)[:, 0])
        found, cosines = self.find(self.asked(embedded[:, self.place]), text, seen)
        rows = torch.cat([embedded, found], dim=1)
        deep = self.deep(torch.cat([rows.flatten(1), cosines], dim=1))
        return torch.cat([self.attention(rows).flatten(1), deep], dim=1)

    def fold(self) -> Folding:
        """The history is read once per request; each item asks it."""
        return FoldedAutoIntHistory(self)


class FoldedAutoIntHistory(Folding):
    """Parts of an item: its fields' rows, what it asks the history, its share of the MLP's first layer, its text."""

    def __init__(self, model: AutoIntHistory) -> None:
        super().__init__(model)
        request, candidate = model.layout.of(REQUEST), model.layout.of(CANDIDATE)
        self.model = copy.deepcopy(model)
        self.model.embedding.table = rows_of(model.embedding.table, model.layout, request)
        seen = [request.field(slots.name) for slots in model.events.slots]
        places = [slots.start + event for event in range(model.events.length) for slots in seen]
        self.model.events.columns = torch.tensor(places)
        self.model.liked = model.liked - model.events.slots[model.label].offset + seen[model.label].offset
        self.shown = candidate.field(model.layout.fields[model.place].name)
        self.asking = self.sides.item.index(model.place)
        if model.texts is not None:
            self.model.texts = model.texts.at(seen[0].offset)
            self.item_texts = model.texts.at(self.shown.offset)
        layers = (layer for layer in model.attention if isinstance(layer, InteractingLayer))
        self.attention = nn.Sequential(*(layer.served() for layer in layers))
        first, dim = model.deep[0], model.config.embedding_dim
        assert isinstance(first, nn.Linear)  # noqa: S101  (so `mlp` begins)
        of_fields = model.fields * dim
        self.of_fields = SplitLinear(first.weight[:, :of_fields], first.bias, self.sides)
        self.of_found = nn.Parameter(first.weight[:, of_fields:].detach().T.contiguous())
        self.rest = model.deep[1:]
        deep = model.config.hidden[-1]
        self.outputs = nn.ParameterList(output_weights(model, model.width - deep, deep))

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says; without text rows there is no text."""
        rows = self.item_rows(ids)
        parts = rows, self.model.asked(rows[:, self.asking]), self.of_fields.item(rows)
        if self.model.texts is None:
            return parts
        return *parts, self.item_texts(ids[:, self.shown.start])

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        items, query, hidden, *text = parts
        request = self.request_rows(ids)
        seen = self.model.read(self.model.events.ids(ids), self.model.embedding.table, self.model.texts)
        found, cosines = self.model.find(query, text[0] if text else None, seen)
        rows = torch.cat([self.sides.join(request, items), found], dim=1)
        of_found = torch.cat([found.flatten(1), cosines], dim=1) @ self.of_found
        deep = self.rest(hidden + self.of_fields.request(request) + of_found)
        attended: Tensor = self.attention(rows).flatten(1) @ self.outputs[0]
        logits: Tensor = attended + deep @ self.outputs[1]
        return logits
