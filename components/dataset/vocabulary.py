"""From raw values to ids: one encoding for the training tables and for the requests of the service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.events import DERIVED, HISTORY_PREFIX, Column, Events, derived_codes, raw_columns
from components.dataset.layout import FIRST_VALUE, MISSING, PADDING, PADDING_CODE, UNKNOWN, FieldSlots, InputLayout
from components.dataset.spec import DatasetSpec, FieldSpec, Kind
from components.dataset.values import as_text, to_strings
from components.run import aside

FORMAT = 2
#: Kinds whose values are put in bins.
BINNED = frozenset({Kind.NUMBER, Kind.DATE})

#: A history is the user's, whatever its events are about.
HISTORY_SIDE = "user"

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FieldVocabulary:
    """The codes of one field: 0 unknown, 1 missing, 2 mask, from 3 on its values or its bins.

    `values` are ordered by their count in the train part, then by themselves. A number or a date, in days since 1970,
    has `edges` instead: bin i holds edges[i - 1] <= value < edges[i].
    """

    name: str
    side: str
    kind: Kind
    column: str
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    max_values: int = 1

    @classmethod
    def fit(cls, field: FieldSpec, column: Column) -> Self:
        """Learn the values or bins of a field from its column of the train part."""
        make = partial(cls, field.name, field.side, field.kind, field.table_column)
        if field.kind in BINNED:
            return make(edges=_edges(_floats(column, field.kind), field.buckets, field.scale))
        if field.kind is Kind.MULTI:
            lists = Events.of(column, field.name)
            column = lists.flat.filter(pa.array(lists.place < field.max_values))
        width = field.max_values if field.kind is Kind.MULTI else 1
        return make(values=_frequent_values(to_strings(column), field.min_count), max_values=width)

    @property
    def size(self) -> int:
        """Number of codes, the three reserved ones included."""
        bins = len(self.edges) + 1 if self.kind in BINNED else len(self.values)
        return FIRST_VALUE + bins

    @cached_property
    def _codes(self) -> dict[str | None, int]:
        known: dict[str | None, int] = {value: code for code, value in enumerate(self.values, FIRST_VALUE)}
        return {**known, None: MISSING, "": MISSING}

    def grown_from(self, old: Self) -> Self:
        """An older vocabulary of the field with the values that only this one knows behind its own."""
        known = set(old.values)
        return replace(old, values=(*old.values, *(value for value in self.values if value not in known)))

    def encode(self, values: Column) -> Codes:
        """Local codes of shape [n]; of a multi field [n, max_values], empty slots -1.

        Args:
            values: n raw values as an Arrow column or as a plain sequence; lists of strings for a multi field.

        Raises:
            UserError: a multi field is given single values.
        """
        if self.kind is not Kind.MULTI:
            return self._encode_flat(values)
        lists = Events.of(values, self.name)
        codes = np.full((len(values), self.max_values), PADDING_CODE, dtype=np.int64)
        kept = lists.place < self.max_values
        codes[lists.rows[kept], lists.place[kept]] = self._encode_flat(lists.flat)[kept]
        codes[codes[:, 0] == PADDING_CODE, 0] = MISSING
        return codes

    def encode_history(self, values: Column, length: int) -> Codes:
        """Local codes of shape [n, length] of n lists of events, oldest first: the last ones, left-padded.

        Raises:
            UserError: single values instead of lists.
        """
        events = Events.of(values, self.name)
        return events.recent(self._encode_flat(events.flat), length)

    def _encode_flat(self, values: Column) -> Codes:
        if self.kind in BINNED:
            numbers = _floats(values, self.kind)
            bins = np.searchsorted(np.asarray(self.edges, dtype=np.float64), numbers, side="right")
            return np.where(np.isnan(numbers), MISSING, FIRST_VALUE + bins).astype(np.int64)
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            return np.fromiter((self._code(value) for value in values), dtype=np.int64, count=len(values))
        encoded = _one_array(to_strings(values).dictionary_encode())
        table = [self._codes.get(value, UNKNOWN) for value in encoded.dictionary.to_pylist()]
        places = encoded.indices.fill_null(len(table)).to_numpy(zero_copy_only=False)
        codes: Codes = np.array([*table, MISSING], dtype=np.int64)[places]
        return codes

    def _code(self, value: Any) -> int:
        return self._codes.get(value if isinstance(value, str) else as_text(value), UNKNOWN)

    def to_json(self) -> dict[str, Any]:
        """The field's vocabulary as plain JSON content."""
        frame = {"name": self.name, "side": self.side, "kind": str(self.kind), "column": self.column}
        return {**frame, "values": self.values, "edges": self.edges, "max_values": self.max_values}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The vocabulary that `to_json` described."""
        lists = {"values": tuple(content["values"]), "edges": tuple(content["edges"])}
        return cls(**{**content, "kind": Kind(content["kind"]), **lists})


@dataclass(frozen=True)
class Vocabulary:
    """All inputs of the collaborative model: its fields and, where there is a history, the attributes of its events.

    `history` names each attribute with its length: a field of the model, whose codes it shares; one of `behaviour`,
    a field that only events have; or one of DERIVED.
    """

    fields: tuple[FieldVocabulary, ...]
    history: tuple[tuple[str, int], ...] = ()
    behaviour: tuple[FieldVocabulary, ...] = ()

    @classmethod
    def fit(cls, spec: DatasetSpec, train: pa.Table) -> Self:
        """Learn the vocabulary of a data set from the train part of its impressions, and from nothing else."""
        fields = tuple(FieldVocabulary.fit(field, train[field.table_column]) for field in spec.model_fields_of())
        if spec.history is None:
            return cls(fields)
        known = [name for name in history_attributes(spec) if set(raw_columns(name)) <= set(train.column_names)]
        inputs = {field.name for field in fields}
        own = [spec.field(name) for name in spec.history.behaviour if name in known and name not in inputs]
        behaviour = tuple(FieldVocabulary.fit(field, train[field.table_column]) for field in own)
        return cls(fields, tuple((name, spec.history.slots) for name in known), behaviour)

    def without_history(self) -> Self:
        """The vocabulary of a model that does not read the history."""
        return type(self)(self.fields)

    @cached_property
    def layout(self) -> InputLayout:
        """Columns and ids of the model's input."""
        slots: dict[str, FieldSlots] = {}
        start, offset = 0, PADDING + 1
        for field in self.fields:
            place = (start, field.max_values, offset, field.size)
            slots[field.name] = FieldSlots(field.name, field.side, str(field.kind), *place)
            start, offset = start + field.max_values, offset + field.size
        ranges = {name: (one.kind, one.offset, one.size) for name, one in slots.items()}
        for name, of_kind, own in self._own_ranges():
            ranges[name] = (str(of_kind), offset, own)
            offset += own
        history = []
        for name, length in self.history:
            kind, first, size = ranges[name]
            history.append(FieldSlots(HISTORY_PREFIX + name, HISTORY_SIDE, kind, start, length, first, size))
            start += length
        return InputLayout(tuple(slots.values()), tuple(history))

    def _own_ranges(self) -> Iterator[tuple[str, Kind, int]]:
        """The attributes of events that are no fields of the model, each with its kind and number of codes."""
        yield from ((field.name, field.kind, field.size) for field in self.behaviour)
        derived = (name for name, _ in self.history if name in DERIVED)
        yield from ((name, Kind.CATEGORY, FIRST_VALUE + DERIVED[name]) for name in derived)

    def of(self, sides: Collection[str]) -> Self:
        """The vocabulary of the fields and histories of some sides alone, whose layout is `layout.of(sides)`."""
        fields = tuple(field for field in self.fields if field.side in sides)
        if HISTORY_SIDE not in sides:
            return type(self)(fields)
        there = {field.name for field in fields} | set(DERIVED)
        own = tuple(self.field(name) for name, _ in self.history if name not in there)
        return type(self)(fields, self.history, own)

    def field(self, name: str) -> FieldVocabulary:
        """The vocabulary of one field, of the model or of its events alone.

        Raises:
            KeyError: the model has no such input.
        """
        for field in (*self.fields, *self.behaviour):
            if field.name == name:
                return field
        raise KeyError(name)

    def extended(self, name: str, values: Sequence[str]) -> Self:
        """The vocabulary with more values of one field, which get the codes behind those that it has.

        Raises:
            KeyError: the model has no such input.
            ValueError: a value is known already or given twice.
        """
        field = self.field(name)
        known = sorted(set(values) & set(field.values))
        if known or len(set(values)) < len(values):
            raise ValueError(f"field '{name}' has these values already, or they are given twice: {known[:5]}")
        larger = replace(field, values=(*field.values, *values))
        return replace(self, fields=tuple(larger if one is field else one for one in self.fields))

    def grown_from(self, old: Self) -> Self:
        """An older vocabulary with what is new in this one: known values keep their codes, numbers their bins.

        Raises:
            UserError: the two are of other fields.
        """
        if not self._alike(old):
            raise UserError(
                "the champion's model has other fields than this DatasetSpec; write warm_start: false for one run"
            )
        fields, behaviour = (
            tuple(mine.grown_from(theirs) for mine, theirs in zip(new, before, strict=True))
            for new, before in ((self.fields, old.fields), (self.behaviour, old.behaviour))
        )
        return type(self)(fields, self.history, behaviour)

    def _alike(self, other: Self) -> bool:
        """Whether both are of the same fields and events, whatever values they know."""
        mine, theirs = (
            (
                [(field.name, field.side, field.kind, field.column, field.max_values) for field in one.fields],
                [(field.name, field.side, field.kind, field.column, field.max_values) for field in one.behaviour],
                one.history,
            )
            for one in (self, other)
        )
        return mine == theirs

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the raw columns that `encode` reads."""
        events = [column for name, _ in self.history for column in raw_columns(name)]
        return tuple(dict.fromkeys([*(field.column for field in self.fields), *events]))

    def encode(self, columns: Mapping[str, Column]) -> Codes:
        """Global ids of shape [n, layout.width] of n rows, given as raw columns by name; others are left alone.

        Raises:
            UserError: a column is missing, or the columns differ in length.
        """
        rows = self._rows(columns)
        ids = np.empty((rows, self.layout.width), dtype=np.int64)
        for slots, field in zip(self.layout.fields, self.fields, strict=True):
            codes = field.encode(columns[field.column])
            if field.kind is Kind.MULTI:
                ids[:, slots.start : slots.stop] = _global(codes, slots)
            else:  # one code each, and no empty slots: the service does this for every request's one row
                ids[:, slots.start] = codes
                ids[:, slots.start] += slots.offset
        for slots, (name, length) in zip(self.layout.history, self.history, strict=True):
            if name in DERIVED:
                codes = derived_codes(name, columns, length)
            else:
                codes = self.field(name).encode_history(columns[slots.name], length)
            ids[:, slots.start : slots.stop] = _global(codes, slots)
        return ids

    def _rows(self, columns: Mapping[str, Column]) -> int:
        absent = [name for name in self.columns if name not in columns]
        if absent:
            raise UserError(f"columns are missing: {', '.join(absent)}; give each, with null where nothing is known")
        lengths = {name: len(columns[name]) for name in self.columns}
        if len(set(lengths.values())) > 1:
            raise UserError(f"columns differ in length: {lengths}")
        return next(iter(lengths.values()))

    @cached_property
    def _content(self) -> str:
        fields, behaviour = ([field.to_json() for field in of] for of in (self.fields, self.behaviour))
        content = {"format": FORMAT, "fields": fields, "history": self.history, "behaviour": behaviour}
        return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the vocabulary."""
        return hashlib.sha256(self._content.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the vocabulary as one JSON file."""
        with aside(path) as draft:
            draft.write_text(self._content, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a vocabulary that `save` wrote.

        Raises:
            UserError: the file is of another format.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise UserError(f"{path}: vocabulary format {content.get('format')} is not {FORMAT}; run retrieve again")
        fields, own = (tuple(map(FieldVocabulary.from_json, content[key])) for key in ("fields", "behaviour"))
        return cls(fields, tuple((name, length) for name, length in content["history"]), own)


def history_attributes(spec: DatasetSpec) -> tuple[str, ...]:
    """Names of what the model reads of an event: item fields that are its inputs, behaviour, and what all have."""
    if spec.history is None:
        return ()
    inputs = spec.model_fields_of("item")
    identity = [field.name for field in inputs if field.kind is Kind.ID]
    chosen = [name for name in spec.history.fields if name in {field.name for field in inputs}]
    return tuple(dict.fromkeys([*identity, *chosen, *spec.history.behaviour, *DERIVED]))


def _global(codes: Codes, slots: FieldSlots) -> Codes:
    return np.where(codes == PADDING_CODE, PADDING, codes + slots.offset)


def _one_array(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _floats(column: Column, kind: Kind) -> npt.NDArray[np.float64]:
    """Numbers, or dates as days since 1970, as float64; NaN where they are missing."""
    if kind is Kind.DATE:
        if not isinstance(column, pa.Array | pa.ChunkedArray):
            column = pa.array([value if isinstance(value, str) else None for value in column], pa.string())
        days = pc.strptime(column.cast(pa.string()), format="%Y-%m-%d", unit="s", error_is_null=True).cast(pa.date32())
        column = days.cast(pa.int32())
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.array([np.nan if value is None else value for value in column], dtype=np.float64)


def _edges(numbers: npt.NDArray[np.float64], buckets: int, scale: str) -> tuple[float, ...]:
    """Inner edges of at most `buckets` bins, of about equal count or of equal width on a linear or log scale.

    Each edge is one of the numbers: no bin is empty in them, and no edge falls between two floats in a way that
    differs by platform. The log scale is sign(x) log(1 + |x|), so that zero and negative numbers have a place too.
    """
    finite = np.sort(numbers[np.isfinite(numbers)])
    if finite.size == 0:
        return ()
    shares = np.arange(1, buckets) / buckets
    if scale == "quantile":
        edges = np.quantile(finite, shares, method="higher")
    else:
        scaled = np.sign(finite) * np.log1p(np.abs(finite)) if scale == "log" else finite
        # Weights of the two ends, since their difference may be too large for a float.
        places = np.searchsorted(scaled, scaled[0] * (1 - shares) + scaled[-1] * shares, side="left")
        edges = finite[np.minimum(places, len(finite) - 1)]
    edges = np.unique(edges)
    return tuple(float(edge) for edge in edges[edges > finite[0]])


def _frequent_values(strings: Any, min_count: int) -> tuple[str, ...]:
    counts = pc.value_counts(_one_array(strings.drop_null()))
    table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
    table = table.filter(pc.greater_equal(table["count"], min_count))
    ordered = table.sort_by([("count", "descending"), ("value", "ascending")])
    return tuple(ordered["value"].to_pylist())
