"""Users and items that training never shows: hidden at random, and given rows by a map from their texts.

A new item has no id embedding, and the served model sees no text. So a linear map from the text's embedding to the
id's row is trained with the model, and the model is trained to do without some ids: a new item's row is then what the
map makes of its words. The same holds for users. (DropoutNet, Volkovs et al. 2017, drops ids likewise.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.dataset.errors import UserError
from components.dataset.layout import FIRST_VALUE, UNKNOWN, FieldSlots, InputLayout
from components.dataset.spec import Kind
from components.dataset.training_set import SplitArrays
from components.training.group import Group
from components.training.texts import TextRows


class Hiding(nn.Module):
    """Shows some rows' users and items as new ones.

    Hidden are the id and every value that only this one user or item has in the train part, such as a title: a new
    one's would be unknown as well. With `owners` also what a few share: a zip code of five users is nearly an id.
    Columns of the history stay: what a user did is known.

    Args:
        layout: The model's input.
        train: Rows of the train part.
        shares: Share of the rows to be hidden, by side.
        owners: Users or items that may share a value which is hidden with them.
    """

    def __init__(self, layout: InputLayout, train: SplitArrays, shares: Mapping[str, float], owners: int = 1) -> None:
        super().__init__()
        self.shares = {side: share for side, share in shares.items() if share > 0}
        for side in self.shares:
            codes = {"user": train.user_codes, "item": train.item_codes}[side]
            columns = torch.zeros(layout.width, dtype=torch.bool)
            for slots in layout.fields:
                columns[slots.start : slots.stop] = slots.side == side
            self.register_buffer(f"{side}_columns", columns, persistent=False)
            hidden = _hidden_ids(layout, side, train.ids, codes, owners)
            self.register_buffer(f"{side}_hidden", hidden, persistent=False)

    def forward(self, ids: Tensor, generator: torch.Generator, group: Group, whole: int) -> Tensor:
        """The ids [n, W] with some rows' users and items hidden, drawn anew at each call.

        They are a process's part of a batch of `whole` rows: every process draws for all and keeps its own.
        """
        for side, share in self.shares.items():
            dice = torch.rand(whole, generator=generator)[group.share(whole)]
            drawn = (dice < share).to(ids.device).unsqueeze(1)
            hidden = self.get_buffer(f"{side}_hidden")[ids]
            ids = torch.where(drawn & self.get_buffer(f"{side}_columns"), hidden, ids)
        return ids


def _hidden_ids(
    layout: InputLayout, side: str, ids: npt.NDArray[np.int32], codes: npt.NDArray[np.int64], few: int
) -> Tensor:
    """For each global id the one that stands in its place when its user or item is hidden, int32 [vocabulary]."""
    hidden = np.arange(layout.vocabulary_size, dtype=np.int32)
    for slots in (slots for slots in layout.fields if slots.side == side and slots.kind != Kind.NUMBER):
        values = ids[:, slots.start : slots.stop].astype(np.int64)
        pairs = np.unique(values * (int(codes.max()) + 1) + codes[:, None])
        found, owners = np.unique(pairs // (int(codes.max()) + 1), return_counts=True)
        own = found[(owners <= few) & (found >= slots.offset + FIRST_VALUE) & (found < slots.offset + slots.size)]
        hidden[own] = slots.offset + UNKNOWN
        if slots.kind == Kind.ID:
            hidden[slots.offset + FIRST_VALUE : slots.offset + slots.size] = slots.offset + UNKNOWN
    return torch.from_numpy(hidden)


@dataclass(frozen=True)
class IdField:
    """The field that holds a side's id, and its place among the fields."""

    place: int
    slots: FieldSlots


def id_field(layout: InputLayout, side: str) -> IdField:
    """The field of a side's id.

    Raises:
        UserError: the side's id is no input of the model.
    """
    for place, slots in enumerate(layout.fields):
        if (slots.side, slots.kind) == (side, Kind.ID):
            return IdField(place, slots)
    raise UserError(f"the {side}'s id is no input of the model, so that no row can be mapped; add a field of kind id")


class RowMaps(nn.Module):
    """Maps from a text's embedding to the row of the id whose text it is: [n, text dim] -> [n, embedding dim].

    An id's row is its own and the mapped one together. So every impression trains the map, and the own row holds what
    the words do not tell; where the id is unknown or hidden, the row of unknown values stands for it.
    """

    def __init__(self, layout: InputLayout, sides: tuple[str, ...], text_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.fields = {side: id_field(layout, side) for side in sides}
        self.maps = nn.ModuleDict({side: nn.Linear(text_dim, embedding_dim) for side in sides})

    def forward(self, side: str, texts: Tensor) -> Tensor:
        """The rows [n, embedding dim] of users or items with these texts [n, text dim]."""
        rows: Tensor = self.maps[side](texts)
        return rows

    def linear(self, side: str) -> nn.Linear:
        """The map of a side."""
        found = self.maps[side]
        assert isinstance(found, nn.Linear)  # noqa: S101  (there are no others)
        return found

    def add_to(self, embedded: Tensor, texts: TextRows, part: str, rows: Tensor) -> Tensor:
        """The fields' rows [batch, F, dim] with the mapped ones of impressions at `rows` [batch] of a part added."""
        added = torch.zeros_like(embedded)
        for side, field in self.fields.items():
            added[:, field.place] = self(side, texts.of(side, part, rows))
        return embedded + added
