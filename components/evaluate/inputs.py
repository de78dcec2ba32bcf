"""The model's input as it would be with values missing, or as it was some time ago."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from components.dataset.layout import MISSING, PADDING, UNKNOWN, FieldSlots, InputLayout
from components.dataset.spec import EVENT_TIMESTAMP, Kind
from components.dataset.splits import PARTS
from components.dataset.training_set import TrainingSet

Ids = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Slots = tuple[FieldSlots, ...]


def views(data: TrainingSet) -> dict[str, Slots]:
    """The columns of each feature view, by the names that they have in the feature store, and of the context.

    What a request's moment says is in none: it can be neither missing nor old.
    """
    layout, counts = data.layout, {field.name for field in data.spec.activity_fields()}
    computed = {field.name for field in data.spec.moment_fields()}
    activity = [slots for slots in layout.fields if slots.name in counts]
    profile = [slots for slots in layout.fields if slots.kind != Kind.ID and slots.name not in counts]
    members = {
        "user_profile": tuple(slots for slots in profile if slots.side == "user"),
        "item_profile": tuple(slots for slots in profile if slots.side == "item"),
        "user_history": layout.history,
        "user_activity": tuple(slots for slots in activity if slots.side == "user"),
        "item_statistics": tuple(slots for slots in activity if slots.side == "item"),
        "context": tuple(slots for slots in profile if slots.side == "context" and slots.name not in computed),
    }
    return {name: slots for name, slots in members.items() if slots}


def changing(data: TrainingSet) -> dict[str, Slots]:
    """The views whose values can be others at another time: of events, and of tables with time stamps of their own.

    The context comes with the request and is never old; without time stamps nothing is.
    """
    if data.spec.keys.timestamp is None:
        return {}
    tables = {"user_profile": data.spec.sources.users, "item_profile": data.spec.sources.items}
    dated = {name for name, table in tables.items() if table is not None and table.timestamp is not None}
    of_events = {"user_history", "user_activity", "item_statistics"}
    return {name: slots for name, slots in views(data).items() if name in dated | of_events}


def whole_rows(layout: InputLayout) -> dict[str, Slots]:
    """Everything of a user, the history too, and everything of an item: a stranger to store and model alike."""
    of_side = {side: tuple(s for s in layout.fields if s.side == side) for side in ("user", "item")}
    of_side["user"] += layout.history
    return {side: slots for side, slots in of_side.items() if slots}


def without(layout: InputLayout, ids: Ids, slots: Sequence[FieldSlots]) -> Ids:
    """The ids [n, width] as the service would make them where these fields have no value.

    A request always has the keys, so a key without its row is an unknown one; a history is empty.
    """
    changed = ids.copy()
    for one in slots:
        changed[:, one.start : one.stop] = PADDING
        if one not in layout.history:
            changed[:, one.start] = one.offset + (UNKNOWN if one.kind == Kind.ID else MISSING)
    return changed


@dataclass(frozen=True)
class Log:
    """The rows of all parts in one sequence: ids [n, width], keys [n] by side, moments [n] in microseconds."""

    ids: Ids
    keys: dict[str, Numbers]
    moments: Numbers

    @classmethod
    def read(cls, data: TrainingSet) -> Self:
        """The log of a training set whose rows have time stamps."""
        arrays = [data.arrays(part) for part in PARTS]
        keys = {
            "user": np.concatenate([rows.user_codes for rows in arrays]),
            "item": np.concatenate([rows.item_codes for rows in arrays]),
        }
        columns = [data.table(part, [EVENT_TIMESTAMP])[EVENT_TIMESTAMP] for part in PARTS]
        moments = np.concatenate([column.cast("int64").to_numpy() for column in columns])
        return cls(np.concatenate([rows.ids for rows in arrays]), keys, moments)

    def timeline(self, side: str) -> Timeline:
        """The rows of each user or item in the order of time."""
        return Timeline.of(self.keys[side], self.moments)


@dataclass(frozen=True)
class Timeline:
    """Rows sorted by key and moment, searchable by both at once."""

    keys: Numbers
    moments: Numbers
    order: Numbers
    times: Numbers
    places: Numbers

    @classmethod
    def of(cls, keys: Numbers, moments: Numbers) -> Self:
        """Sort rows by key [n], then moment [n]."""
        order = np.lexsort((moments, keys))
        times = np.unique(moments)
        # Key and moment as one number, so that one binary search finds both.
        places = keys[order] * (len(times) + 1) + np.searchsorted(times, moments[order])
        return cls(keys, moments, order, times, places)

    def first_after(self, rows: Numbers, lag: int) -> Numbers:
        """For each of `rows` the first row of its key that is later than its own moment less the lag.

        There always is one: the row itself, for a lag above 0 in the unit of the moments.
        """
        later = np.searchsorted(self.times, self.moments[rows] - lag, side="right")
        return self.order[np.searchsorted(self.places, self.keys[rows] * (len(self.times) + 1) + later)]
