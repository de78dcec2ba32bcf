"""The texts of one shard, read from the prompts in spans of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.errors import UserError

#: Texts whose hashes are held in memory at once.
SPAN = 131_072
ROWS = 8_192


@dataclass
class Span:
    """Texts of a shard that are looked up and encoded together: by hash, the ids of the texts that have it."""

    path: Path
    first: int
    last: int
    ids: dict[bytes, list[int]] = field(default_factory=dict)

    @property
    def texts(self) -> int:
        """Text ids in the span, two of the same text counted twice."""
        return sum(len(of) for of in self.ids.values())

    def missing(self, block: int) -> Iterator[tuple[list[bytes], list[str]]]:
        """Hashes and texts of what is still in `ids`, each different text once, in blocks."""
        left = set(self.ids)
        hashes: list[bytes] = []
        texts: list[str] = []
        for batch in _rows(self.path, ["text_id", "hash", "text"], self.first, self.last):
            for hash_, row in zip(batch["hash"].to_pylist(), range(batch.num_rows), strict=True):
                key = bytes.fromhex(hash_)
                if key in left:
                    left.remove(key)
                    hashes.append(key)
                    texts.append(_text(self.path, batch, row))
                if len(texts) == block:
                    yield hashes, texts
                    hashes, texts = [], []
        if texts:
            yield hashes, texts


def spans(path: Path, shard: int, shards: int) -> Iterator[Span]:
    """The texts of a shard: every `shards`-th, so that shards are alike in length whatever the texts' order."""
    span = Span(path, 0, 0)
    for batch in _rows(path, ["text_id", "hash"], 0, None):
        ids, hashes = batch["text_id"].to_pylist(), batch["hash"].to_pylist()
        for text_id, hash_ in zip(ids, hashes, strict=True):
            if text_id % shards == shard:
                span.ids.setdefault(bytes.fromhex(hash_), []).append(text_id)
        span.last = ids[-1] + 1
        if len(span.ids) >= SPAN:
            yield span
            span = Span(path, span.last, span.last)
    if span.ids:
        yield span


def _rows(path: Path, columns: Sequence[str], first: int, last: int | None) -> Iterator[Any]:
    """Batches of rows whose text ids lie in [first, last); rows stand in the order of their ids."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        position = 0
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            start, position = position, position + batch.num_rows
            if last is not None and start >= last:
                return
            if position > first:
                low, high = max(first - start, 0), batch.num_rows if last is None else min(last - start, batch.num_rows)
                yield batch.slice(low, high - low)


def _text(path: Path, batch: pa.RecordBatch, row: int) -> str:
    try:
        text: str = batch["text"][row].as_py()
    except UnicodeDecodeError:
        number = batch["text_id"][row].as_py()
        message = f"{path}: text {number} is not valid UTF-8; clean its source and run prompt_transform again"
        raise UserError(message) from None
    return text
