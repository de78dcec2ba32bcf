"""Where each field lies in the matrix of ids, and which ids it uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

#: Local codes that every field has; the codes of its values follow.
UNKNOWN = 0
MISSING = 1
MASK = 2
RESERVED_CODES = (UNKNOWN, MISSING, MASK)
FIRST_VALUE = len(RESERVED_CODES)

#: Global id of an empty slot: a row of zeros, never trained, no part of a mean.
PADDING = 0
#: Stands for an empty slot among local codes.
PADDING_CODE = -1

#: Sides of a request that scores many items: what it fixes, and what each candidate brings.
REQUEST = frozenset({"user", "context"})
CANDIDATE = frozenset({"item"})


@dataclass(frozen=True)
class FieldSlots:
    """One field's columns `start : start + width` of the id matrix; global id = `offset` + local code."""

    name: str
    side: str
    kind: str
    start: int
    width: int
    offset: int
    size: int

    @property
    def stop(self) -> int:
        """First column after this field's."""
        return self.start + self.width


@dataclass(frozen=True)
class PartColumns:
    """The columns of another layout, the part, [its width], among the `width` columns of the whole one.

    An id of column i of the part is that of column `columns[i]` of the whole less `shift[i]`; padding stays padding.
    """

    columns: Ids
    shift: Ids
    width: int

    def taken(self, ids: Ids) -> Ids:
        """The part's ids [n, part's width] of whole rows [n, width]."""
        mine = ids[:, self.columns]
        return np.where(mine == PADDING, PADDING, mine - self.shift)

    def spread(self, ids: Ids) -> Ids:
        """Whole rows [n, width] of the part's ids [n, part's width]; padding where the part has no column.

        Those of all parts together, added, are the whole rows.
        """
        found = np.zeros((len(ids), self.width), dtype=np.int64)
        found[:, self.columns] = np.where(ids == PADDING, PADDING, ids + self.shift)
        return found


@dataclass(frozen=True)
class InputLayout:
    """The input of a collaborative model: ids of shape [batch, width], all below `vocabulary_size`.

    History slots hold one event per column, the most recent last, padded on the left, and lie behind all fields.
    They share the offset of the field whose ids they hold, so that an item is one embedding row, shown now or seen
    before; what only events have (label, gap, hour) has ids of its own behind those of the fields.
    """

    fields: tuple[FieldSlots, ...]
    history: tuple[FieldSlots, ...] = ()

    @property
    def width(self) -> int:
        """Columns of the id matrix."""
        return sum(slots.width for slots in (*self.fields, *self.history))

    @property
    def vocabulary_size(self) -> int:
        """Embedding rows of all fields and events together, the padding row included."""
        return max(slots.offset + slots.size for slots in (*self.fields, *self.history))

    def without_history(self) -> Self:
        """The input of a model that does not read the history: the first columns of this one."""
        return type(self)(self.fields)

    def of(self, sides: Collection[str]) -> Self:
        """The fields and histories of some sides alone, columns and ids numbered anew.

        A history shares the ids of its field where that is among them, else it has ids of its own behind the fields'.
        """
        fields, start, offset = [], 0, PADDING + 1
        offsets: dict[int, int] = {}
        for slots in self.fields:
            if slots.side in sides:
                offsets[slots.offset] = offset
                fields.append(replace(slots, start=start, offset=offset))
                start, offset = start + slots.width, offset + slots.size
        history = []
        for slots in self.history:
            if slots.side in sides:
                if slots.offset not in offsets:
                    offsets[slots.offset] = offset
                    offset += slots.size
                history.append(replace(slots, start=start, offset=offsets[slots.offset]))
                start += slots.width
        return type(self)(tuple(fields), tuple(history))

    def part(self, sides: Collection[str]) -> PartColumns:
        """Where the columns of `of(sides)` lie in this layout, and by how much their ids differ."""
        return self.columns_of(self.of(sides))

    def columns_of(self, other: InputLayout) -> PartColumns:
        """Where another layout's columns lie in this one, which has its fields, and by how much their ids differ."""
        columns, shift = (np.zeros(other.width, dtype=np.int64) for _ in range(2))
        for slots in (*other.fields, *other.history):
            whole = self.field(slots.name)
            columns[slots.start : slots.stop] = np.arange(whole.start, whole.stop)
            shift[slots.start : slots.stop] = whole.offset - slots.offset
        return PartColumns(columns, shift, self.width)

    def ids_of(self, sides: Collection[str], ids: Ids) -> Ids:
        """Ids [n, width] as the columns and ids of `of(sides)`."""
        return self.part(sides).taken(ids)

    def field(self, name: str) -> FieldSlots:
        """The slots of a field, or of a history by its column's name.

        Raises:
            KeyError: there are none of this name.
        """
        for slots in (*self.fields, *self.history):
            if slots.name == name:
                return slots
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """The layout as plain JSON content."""
        return {"fields": [asdict(slots) for slots in self.fields], "history": [asdict(s) for s in self.history]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The layout that `to_json` described."""
        fields, history = (tuple(FieldSlots(**slots) for slots in content[key]) for key in ("fields", "history"))
        return cls(fields, history)
