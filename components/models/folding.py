"""Folding: what depends on the request alone is computed once per request, what depends on the item once per item.

A request scores many items for one user in one context. The first layers of most backbones are linear, or products
of two fields, and so fall apart into a part of the request, a part of the item, and their meeting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from components.dataset.layout import CANDIDATE, PADDING, REQUEST, InputLayout
from components.models.embedding import FieldEmbedding

if TYPE_CHECKING:
    from components.models.base import CollaborativeModel


@runtime_checkable
class Serves(Protocol):
    """A layer that is served in another form than it is trained in, with the same result."""

    def served(self) -> nn.Module:
        """The layer's form for serving."""


class Sides:
    """Which fields the request fixes (the user's and the context's), and which each item brings."""

    def __init__(self, layout: InputLayout) -> None:
        self.layout = layout
        places = enumerate(layout.fields)
        of_item = {place for place, slots in places if slots.side in CANDIDATE}
        self.item = sorted(of_item)
        self.request = [place for place in range(len(layout.fields)) if place not in of_item]

    def join(self, request: Tensor, item: Tensor) -> Tensor:
        """[1 or n, request fields, ...] and [n, item fields, ...] side by side in the layout's order: [n, F, ...]."""
        request = request.expand(item.shape[0], *request.shape[1:])
        taken = {True: 0, False: 0}
        pieces = []
        for of_item, run in groupby(range(len(self.layout.fields)), key=self.item.__contains__):
            start, count = taken[of_item], len(list(run))
            pieces.append((item if of_item else request)[:, start : start + count])
            taken[of_item] += count
        return torch.cat(pieces, dim=1)

    def embedding(self, whole: FieldEmbedding, sides: frozenset[str]) -> FieldEmbedding:
        """The rows of the fields of some sides, read by the ids of their own layout; none of a history's."""
        layout = self.layout.of(sides).without_history()
        part = FieldEmbedding(layout, whole.dim)
        with torch.no_grad():
            part.table.weight[PADDING] = whole.table.weight[PADDING]
            for slots in layout.fields:
                old = self.layout.field(slots.name).offset
                rows = whole.table.weight[old : old + slots.size]
                part.table.weight[slots.offset : slots.offset + slots.size] = rows
        return part


class SplitLinear(nn.Module):
    """A linear layer over the rows of all fields side by side, as the sum of a request's and an item's part.

    Args:
        weight: [out, F * dim].
        bias: [out]; part of the request's.
        sides: Whose fields they are.
    """

    def __init__(self, weight: Tensor, bias: Tensor, sides: Sides) -> None:
        super().__init__()
        by_field = weight.detach().unflatten(1, (len(sides.layout.fields), -1))  # type: ignore[no-untyped-call]
        self.weights = nn.ParameterList(by_field[:, places].flatten(1).T for places in (sides.request, sides.item))
        self.bias = nn.Parameter(bias.detach())

    def request(self, rows: Tensor) -> Tensor:
        """The part [1, out] of a request's rows [1, request fields, dim]."""
        return torch.addmm(self.bias, rows.flatten(1), self.weights[0])

    def item(self, rows: Tensor) -> Tensor:
        """The part [n, out] of items' rows [n, item fields, dim]."""
        part: Tensor = rows.flatten(1) @ self.weights[1]
        return part


class Folding(nn.Module, ABC):
    """A trained model in eval mode, cut in two: `item` once per item, `forward` once per request.

    Both sides read the ids of their own layouts, `layout.of(CANDIDATE)` and `layout.of(REQUEST)`.
    """

    def __init__(self, model: CollaborativeModel) -> None:
        super().__init__()
        self.sides = Sides(model.layout)
        self.request_rows = self.sides.embedding(model.embedding, REQUEST)
        self.item_rows = self.sides.embedding(model.embedding, CANDIDATE)
        self.bias = nn.Parameter(model.head.bias.detach())

    @abstractmethod
    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """What depends on the item alone, each [n, ...], for ids [n, W of the items' layout]."""

    @abstractmethod
    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the output's bias, of a request's ids [1, W of the request's layout] and items' parts."""

    def forward(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n] of a request's ids [1, W of the request's layout] and n items' parts."""
        return (self.meet(ids, *parts) + self.bias).squeeze(-1)


def rows_of(table: nn.Embedding, whole: InputLayout, part: InputLayout) -> nn.Embedding:
    """The rows of a table for the ids of a part of its layout, histories' too."""
    rows = torch.zeros(part.vocabulary_size, table.embedding_dim)
    for slots in (*part.fields, *part.history):
        old = whole.field(slots.name).offset
        rows[slots.offset : slots.offset + slots.size] = table.weight.detach()[old : old + slots.size]
    return nn.Embedding(rows.shape[0], rows.shape[1], padding_idx=PADDING, _weight=rows)


def output_weights(model: CollaborativeModel, *widths: int) -> list[Tensor]:
    """The output layer's weights for consecutive parts of the representation, [width, 1] each."""
    return list(model.head.weight.detach().T.split(list(widths)))  # type: ignore[no-untyped-call]


class SplitFirstOrder(nn.Module):
    """The first-order weights' share of the logit, of a request and of items, both [n, 1].

    Args:
        first_order: The weights of all fields' ids.
        output: The output layer's weights for them, [F, 1].
        sides: Whose fields they are.
    """

    def __init__(self, first_order: FieldEmbedding, output: Tensor, sides: Sides) -> None:
        super().__init__()
        self.rows = nn.ModuleList(sides.embedding(first_order, side) for side in (REQUEST, CANDIDATE))
        self.output = nn.ParameterList(output[places] for places in (sides.request, sides.item))

    def request(self, ids: Tensor) -> Tensor:
        """[1, 1] of a request's ids."""
        return self._share(0, ids)

    def item(self, ids: Tensor) -> Tensor:
        """[n, 1] of items' ids."""
        return self._share(1, ids)

    def _share(self, side: int, ids: Tensor) -> Tensor:
        share: Tensor = self.rows[side](ids).squeeze(-1) @ self.output[side]
        return share


class SplitMlp(nn.Module):
    """An MLP over the rows of all fields: its first layer in two parts, then the rest, then its share of the logit.

    Args:
        deep: The MLP in eval mode, batch norm folded; its first layer's columns [F * dim] are the fields' rows.
        output: The output layer's weights for its last layer, [hidden[-1], 1].
        sides: Whose fields they are.
    """

    def __init__(self, deep: nn.Sequential, output: Tensor, sides: Sides) -> None:
        super().__init__()
        first = deep[0]
        assert isinstance(first, nn.Linear)  # noqa: S101  (so `mlp` begins)
        self.first = SplitLinear(first.weight, first.bias, sides)
        self.rest = deep[1:]
        self.output = nn.Parameter(output)

    def share(self, rows: Tensor, item: Tensor) -> Tensor:
        """The share [n, 1] of a request's rows [1, request fields, dim] and the items' part [n, hidden[0]]."""
        hidden: Tensor = self.rest(self.first.request(rows) + item)
        return hidden @ self.output
