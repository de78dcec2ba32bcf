"""The items' parts of a folded model, computed once for each row of features and kept in arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]
Array = npt.NDArray[Any]
#: Parts [n, ...] of the items with these keys and rows, by a call with these options; the last of them says whether an
#: item is cold.
Compute = Callable[[Sequence[str], Sequence[Row], Any], list[Array]]

FIRST_ROOM = 1024


class PartTable:
    """Parts of items by key, each valid as long as the item's features are the same object.

    Args:
        compute: Makes the parts.
        size: Bytes that the parts may take; where they are full, the item computed longest ago goes first.
    """

    def __init__(self, compute: Compute, size: int) -> None:
        self.compute, self.size = compute, size
        self._arrays: list[Array] = []
        self._rows: dict[str, tuple[Row, int]] = {}
        #: As in `_rows`; and by place the moment up to which an item's row holds, in one epoch of the rows.
        self._place: dict[str, int] = {}
        self._until = np.empty(0)
        self._epoch = 0
        self._keys: list[str | None] = []
        self._next = self._room = self._capacity = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def ready(self, keys: Sequence[str], now: float, epoch: int) -> tuple[list[Array], Array] | None:
        """What `parts` gives, for items whose rows are known to hold still; None if one of them may not."""
        with self._lock:
            self._enter(epoch)
            try:
                places = itemgetter(*keys)(self._place)
            except KeyError:
                return None
            index = np.array(places, ndmin=1)
            return self._taken(index) if self._until.take(index).min() > now else None

    def row(self, key: str) -> Row:
        """The row from which an item's parts were made.

        Raises:
            KeyError: there are none.
        """
        return self._rows[key][0]

    def parts(
        self,
        keys: Sequence[str],
        rows: Mapping[str, Row],
        until: Mapping[str, float] | None = None,
        epoch: int = 0,
        options: Any = None,
    ) -> tuple[list[Array], Array]:
        """Parts of n items, each [n, ...], and whether each item is cold, [n].

        Args:
            keys: The items.
            rows: Their rows by key.
            until: Moments up to which rows hold, by key, for `ready`.
            epoch: When these were true.
            options: Of the call that makes those which are not there.
        """
        with self._lock:
            places = self._places(keys, rows)
            # Those that are added may push out others of the same request; each does so once at most.
            while -1 in places:
                absent = list(dict.fromkeys(key for key, place in zip(keys, places, strict=True) if place < 0))
                found = self.compute(absent, [rows[key] for key in absent], options)
                if not self._arrays:
                    self._begin(found)
                if len(keys) > self._capacity:
                    *parts, cold = self.compute(keys, [rows[key] for key in keys], options)
                    return parts, cold
                self._add(absent, [rows[key] for key in absent], found)
                places = self._places(keys, rows)
            index = np.array(places)
            self._enter(epoch)
            if until is not None and epoch == self._epoch:
                self._until[index] = [until.get(key, -np.inf) for key in keys]
            return self._taken(index)

    def _enter(self, epoch: int) -> None:
        """Trust nothing that was said of rows before this epoch."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._until.fill(-np.inf)

    def _taken(self, index: Array) -> tuple[list[Array], Array]:
        *parts, cold = (array.take(index, axis=0) for array in self._arrays)
        return parts, cold

    def _places(self, keys: Sequence[str], rows: Mapping[str, Row]) -> list[int]:
        """Where each item's parts are, -1 for those that were not computed from this very row."""
        nowhere = (None, -1)
        held = ((key, *self._rows.get(key, nowhere)) for key in keys)
        return [place if known is rows[key] else -1 for key, known, place in held]

    def _begin(self, like: list[Array]) -> None:
        each = sum(array[:1].nbytes for array in like)
        self._capacity = max(1, self.size // each)
        self._arrays = [np.empty((0, *array.shape[1:]), array.dtype) for array in like]

    def _add(self, keys: Sequence[str], rows: Sequence[Row], parts: list[Array]) -> None:
        self._grow(self._next + len(keys))
        places = (self._next + np.arange(len(keys))) % self._capacity
        for array, part in zip(self._arrays, parts, strict=True):
            array[places] = part
        for key, row, place in zip(keys, rows, places.tolist(), strict=True):
            before = self._keys[place]
            if before is not None and before in self._rows and self._rows[before][1] == place:
                del self._rows[before], self._place[before]
            self._keys[place] = key
            self._rows[key], self._place[key] = (row, place), place
            self._until[place] = -np.inf
        self._next = int(places[-1] + 1) % self._capacity

    def _grow(self, needed: int) -> None:
        """Make room for `needed` items, twice as much as before or more, up to the capacity."""
        room = min(self._capacity, max(needed, 2 * self._room, FIRST_ROOM))
        if needed <= self._room or room == self._room:
            return
        for number, array in enumerate(self._arrays):
            self._arrays[number] = np.concatenate([array, np.empty((room - self._room, *array.shape[1:]), array.dtype)])
        self._keys += [None] * (room - self._room)
        self._until = np.concatenate([self._until, np.full(room - self._room, -np.inf)])
        self._room = room
