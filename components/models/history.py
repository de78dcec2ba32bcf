"""What models that read the history share: the rows of its events, and an MLP over the fields and its summary."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from components.dataset.errors import UserError
from components.dataset.layout import PADDING, InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.embedding import INITIAL_STD


class Events(NamedTuple):
    """A batch's histories beside the candidates that they are read for.

    rows: [batch, L, A * dim], the item's attributes first, the most recent event last; there: [batch, L], False for
    an empty slot, whose row is zero; candidate: [batch, items * dim], the same item attributes of the item shown.
    """

    rows: Tensor
    there: Tensor
    candidate: Tensor


class EventRows(nn.Module):
    """Gathers a history's rows from the table that the fields' rows lie in: an item is one row, shown or seen."""

    columns: Tensor
    fields: Tensor
    first: Tensor

    def __init__(self, layout: InputLayout) -> None:
        super().__init__()
        shown = {slots.offset: place for place, slots in enumerate(layout.fields) if slots.side == "item"}
        items = [slots for slots in layout.history if slots.offset in shown]
        if not items:
            raise UserError("the backbone reads the user's history of items, but the data set has none; add 'history'")
        slots = [*items, *(slots for slots in layout.history if slots.offset not in shown)]
        self.slots = tuple(slots)
        self.items, self.attributes, self.length = len(items), len(slots), items[0].width
        columns = [one.start + event for event in range(self.length) for one in slots]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        places = [shown[one.offset] for one in items]
        self.register_buffer("fields", torch.tensor(places), persistent=False)
        first = torch.tensor([layout.fields[place].start for place in places])
        self.register_buffer("first", first, persistent=False)

    def forward(self, embedded: Tensor, x: Tensor, table: nn.Embedding) -> Events:
        """The events of ids [batch, W], beside the candidates among the fields' rows [batch, F, dim]."""
        ids = self.ids(x)
        there = ids[:, :, 0] != PADDING
        rows = table(ids).flatten(2) * there.unsqueeze(-1)
        return Events(rows, there, embedded.index_select(1, self.fields).flatten(1))

    def ids(self, x: Tensor) -> Tensor:
        """The events' ids [batch, L, A] among ids [batch, W]: item attributes first, in the order of `slots`."""
        return x.index_select(1, self.columns).reshape(-1, self.length, self.attributes)

    def shown(self, x: Tensor) -> Tensor:
        """The candidates' ids [batch, items] of the same item attributes; of a multi field the first, as in events."""
        return x.index_select(1, self.first)


class RowScale(nn.Module):
    """What a layer norm gives, brought to the scale that the fields' rows begin with; the scale is learnt.

    Fields' rows start near zero, and what was normalised has unit variance: side by side before a batch norm, the
    latter would leave the former no room, and what an MLP learns first would be learnt from the history alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), INITIAL_STD))

    def forward(self, rows: Tensor) -> Tensor:
        """Of the shape of rows, [..., width]."""
        return rows * self.weight


class HistoryModel(CollaborativeModel):
    """An MLP over the fields' rows and a summary of the history; representation: its last layer.

    A backbone says in `summary` what it makes of the events, and how wide that is in `summary_width`.
    """

    reads_history: ClassVar[bool] = True

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        self.events = EventRows(layout)
        self.deep = mlp(self.fields * config.embedding_dim + self.summary_width, config)
        self.set_width(config.hidden[-1])

    @property
    @abstractmethod
    def summary_width(self) -> int:
        """Width of the summary."""

    @abstractmethod
    def summary(self, events: Events) -> Tensor:
        """What is made of the events, [batch, summary_width]."""

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """The MLP over [fields, summary], of shape [batch, hidden[-1]]."""
        events: Events = self.events(embedded, x, self.embedding.table)
        found: Tensor = self.deep(torch.cat([embedded.flatten(1), self.summary(events)], dim=1))
        return found


class MeanHistory(HistoryModel):
    """The mean of the events' rows, whatever the candidate: the base model of DIN's paper (section 4.2)."""

    @property
    def summary_width(self) -> int:
        """All attributes side by side."""
        return self.events.attributes * self.config.embedding_dim

    def summary(self, events: Events) -> Tensor:
        """The mean over the events that are there; zero without any."""
        return events.rows.sum(1) / events.there.sum(1, keepdim=True).clamp(min=1)
