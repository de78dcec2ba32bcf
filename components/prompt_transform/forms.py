"""The five forms of a prompt (CTRL section 4.6), rendered for many rows at once with the place of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.prompt_transform.words import Strings

Places = npt.NDArray[np.int32]
HISTORY = "history"
EMPTY = pa.scalar("")


@dataclass(frozen=True)
class Form:
    """How a clause is written: `name` and `value` are filled into the prefix and what follows it."""

    prefix: str
    openers: bool = False
    first: str = ""
    later: Mapping[str, str] | None = None

    def before(self, spoken: str) -> str:
        """What stands before a value."""
        return self.prefix.format(name=spoken)

    def between(self, side: str) -> str:
        """What stands between two clauses of a side."""
        return (self.later or {}).get(side, ", ")


FORMS: dict[str, Form] = {
    # The paper's own sentences join a user's clauses with ", and " and an item's with ", ".
    "natural": Form("{name} is ", True, ", ", {"user": ", and ", "context": ", and "}),
    "field-value": Form("{name}-"),
    "field:value": Form("{name}:"),
    "nameless-field": Form("Field-"),
    "values_only": Form(""),
}


@dataclass(frozen=True)
class Clause:
    """One field of a sentence: its name, what stands before the value, and the values [n], null where missing."""

    field: str
    before: str
    values: Strings
    between: str


@dataclass(frozen=True)
class Sentences:
    """Texts [n] with the character spans of the values by field: starts and ends [n], -1 where there is none."""

    texts: Strings
    starts: dict[str, Places]
    ends: dict[str, Places]

    def take(self, rows: npt.NDArray[np.int64]) -> Sentences:
        """Some of the rows."""
        starts, ends = ({name: places[rows] for name, places in of.items()} for of in (self.starts, self.ends))
        return Sentences(self.texts.take(pa.array(rows)), starts, ends)

    def cut(self, limits: Places) -> Sentences:
        """The texts cut after `limits` [n] characters; values beyond are gone, a value in between is shorter."""
        texts = [text[:limit] for text, limit in zip(self.texts.to_pylist(), limits, strict=True)]
        starts, ends = {}, {}
        for name, start in self.starts.items():
            kept = (start >= 0) & (start < limits)
            starts[name] = np.where(kept, start, -1).astype(np.int32)
            ends[name] = np.where(kept, np.minimum(self.ends[name], limits), -1).astype(np.int32)
        return Sentences(pa.array(texts, pa.string()), starts, ends)


def sentence(form: Form, opener: str, clauses: Sequence[Clause], rows: int) -> Sentences:
    """One sentence per row: the opener, then a clause for each value that is there, then a period."""
    head = opener if form.openers else ""
    pieces: list[Any] = [pa.array([head] * rows, pa.string())]
    length = np.full(rows, len(head), dtype=np.int32)
    begun = np.zeros(rows, dtype=bool)
    starts: dict[str, Places] = {}
    ends: dict[str, Places] = {}
    for clause in clauses:
        there = clause.values.is_valid().to_numpy(zero_copy_only=False)
        before = np.where(begun, len(clause.between), len(form.first)) + len(clause.before)
        size = pc.fill_null(pc.utf8_length(clause.values), 0).to_numpy(zero_copy_only=False)
        starts[clause.field] = np.where(there, length + before, -1).astype(np.int32)
        ends[clause.field] = np.where(there, length + before + size, -1).astype(np.int32)
        pieces.append(_piece(form, clause, begun, there))
        length = (length + np.where(there, before + size, 0)).astype(np.int32)
        begun = begun | there
    pieces.append(pc.if_else(pa.array(length > 0), pa.scalar("."), EMPTY))
    return Sentences(pc.binary_join_element_wise(*pieces, ""), starts, ends)


def _piece(form: Form, clause: Clause, begun: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_]) -> Strings:
    """A clause with what stands before it; empty where its value is missing."""
    later, first = (pa.scalar(between + clause.before) for between in (clause.between, form.first))
    whole = pc.binary_join_element_wise(pc.if_else(pa.array(begun), later, first), clause.values, "")
    return pc.if_else(pa.array(there), whole, EMPTY)


def follow(first: Sentences, second: Sentences) -> Sentences:
    """The sentences one after the other with a blank between, and the spans of both."""
    size = pc.utf8_length(first.texts).to_numpy(zero_copy_only=False).astype(np.int32)
    there = pc.utf8_length(second.texts).to_numpy(zero_copy_only=False) > 0
    gap = there & (size > 0)
    blank = pc.if_else(pa.array(gap), pa.scalar(" "), EMPTY)
    texts = pc.binary_join_element_wise(first.texts, blank, second.texts, "")
    shift = size + gap
    moved = replace(
        second,
        starts={name: _shifted(places, shift) for name, places in second.starts.items()},
        ends={name: _shifted(places, shift) for name, places in second.ends.items()},
    )
    return Sentences(texts, first.starts | moved.starts, first.ends | moved.ends)


def _shifted(places: Places, by: Places) -> Places:
    return np.where(places >= 0, places + by, -1).astype(np.int32)


def spans_column(sentences: Sentences) -> pa.Array:
    """The spans as Arrow list<struct<field, start, end>> [n], each row's in the order of its text."""
    names = list(sentences.starts)
    count = len(sentences.texts)
    starts = np.stack([sentences.starts[name] for name in names], axis=1) if names else np.empty((count, 0), np.int32)
    ends = np.stack([sentences.ends[name] for name in names], axis=1) if names else np.empty((count, 0), np.int32)
    there = starts >= 0
    field = pa.array(names, pa.string()).take(pa.array(np.nonzero(there)[1]))
    structs = pa.StructArray.from_arrays(
        [field, pa.array(starts[there], pa.int32()), pa.array(ends[there], pa.int32())], ["field", "start", "end"]
    )
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)
