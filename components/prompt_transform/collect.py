"""Texts gathered over the parts of a training set, each kept once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.dataset.prompts import TEXT_SCHEMA, text_hash
from components.prompt_transform.forms import Sentences, spans_column
from components.prompt_transform.lengths import Counts

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Chunk:
    """The different texts of some rows, with spans, tokens [u] and what cutting them took, and each row's text.

    `dropped` [n] are the titles of each row's history that gave way, where the rows have one and tokens are counted.
    """

    unique: Sentences
    codes: npt.NDArray[np.int64]
    tokens: Counts | None = None
    lost: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    dropped: Counts | None = None


def first_rows(texts: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number of each row's text among the different ones, and the first row of each of those."""
    encoded = texts.dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    first = np.empty(len(encoded.dictionary), dtype=np.int64)
    # Later writes win, so the rows are gone through backwards.
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return codes, first


@dataclass
class Collector:
    """The texts of one side (user, item or row), over all parts."""

    side: str
    chunks: list[Chunk] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def add(self, part: str, chunk: Chunk) -> None:
        """Add the next rows of a part."""
        self.chunks.append(chunk)
        self.parts.append(part)

    def finish(self, start: int) -> Collected:
        """Number the texts from `start` on, each once."""
        texts = pa.concat_arrays([chunk.unique.texts for chunk in self.chunks])
        spans = pa.concat_arrays([spans_column(chunk.unique) for chunk in self.chunks])
        codes, first = first_rows(texts)
        ends = np.cumsum([0, *(len(chunk.unique.texts) for chunk in self.chunks)])
        index: dict[str, list[Codes]] = {part: [] for part in self.parts}
        for part, chunk, offset in zip(self.parts, self.chunks, ends, strict=False):
            index[part].append((start + codes[offset + chunk.codes]).astype(np.int32))
        taken = pa.array(first)
        table = _table(self.side, start, texts.take(taken), spans.take(taken))
        tokens, lost = self._measured(first)
        return Collected(table, {part: np.concatenate(rows) for part, rows in index.items()}, tokens, lost)

    def _measured(self, first: npt.NDArray[np.int64]) -> tuple[Counts | None, dict[str, int]]:
        counted = [chunk.tokens for chunk in self.chunks if chunk.tokens is not None]
        if not counted:
            return None, {}
        names = list(self.chunks[0].lost)
        lost = {name: np.concatenate([chunk.lost[name] for chunk in self.chunks])[first].sum() for name in names}
        return np.concatenate(counted)[first], {name: int(count) for name, count in lost.items()}


@dataclass(frozen=True)
class Collected:
    """The different texts of a side: rows of TEXT_SCHEMA, text ids by part, tokens [texts], texts cut by field."""

    table: pa.Table
    index: dict[str, Codes]
    tokens: Counts | None
    lost: dict[str, int]


def _table(side: str, start: int, texts: pa.Array, spans: pa.Array) -> pa.Table:
    columns: dict[str, Any] = {
        "text_id": pa.array(np.arange(start, start + len(texts)), pa.int32()),
        "side": pa.repeat(side, len(texts)),
        "hash": pa.array([text_hash(text) for text in texts.to_pylist()], pa.string()),
        "text": texts,
        "spans": spans,
    }
    return pa.table(columns).cast(TEXT_SCHEMA)
