"""Tokens of texts, and the cut of those that are too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.models.plm import PlmSpec, load_tokenizer, locate

#: Characters handed to the tokenizer at once: bounds its memory whatever the texts' lengths.
CHARACTERS = 4_000_000
#: Texts on which sums over pieces are held against true counts.
SAMPLE = 512
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of a PLM, which counts every token of a text, special ones too."""

    tokenizer: Any

    @classmethod
    def of(cls, plm: PlmSpec) -> Tokens:
        """The tokenizer of this PLM; needs neither torch nor its weights.

        Raises:
            UserError: there is no such PLM.
        """
        return cls(load_tokenizer(plm, locate(plm), limit=None))

    def count(self, texts: Sequence[str], estimate: Counts | None = None) -> Counts:
        """Tokens [n] of each text; the estimate [n] where it is right for a sample spread over the texts."""
        if estimate is not None and len(texts):
            sample = np.unique(np.linspace(0, len(texts) - 1, SAMPLE).astype(int))
            if np.array_equal(self._counted([texts[row] for row in sample]), estimate[sample]):
                return estimate
        return self._counted(texts)

    def each(self, texts: Sequence[str]) -> Counts:
        """Tokens [n] that each piece of a text adds, special ones left out; each different piece is counted once."""
        return self._pieces(pa.array(texts, pa.string()))

    def together(self, pieces: Sequence[Any]) -> Counts:
        """Tokens [n] of texts made of pieces, each piece an Arrow array [n], as the sum over their pieces."""
        return np.asarray(sum(self._pieces(texts) for texts in pieces) + self._special)

    def _pieces(self, texts: Any) -> Counts:
        encoded = texts.dictionary_encode()
        counts = self._counted(encoded.dictionary.to_pylist()) - self._special
        return np.asarray(counts[encoded.indices.to_numpy()])

    @property
    def _special(self) -> int:
        """Special tokens around a text."""
        return len(self.tokenizer.encode(""))

    def _counted(self, texts: Sequence[str]) -> Counts:
        return np.array([len(encoding) for encoding in self._encodings(texts)], dtype=np.int64)

    def ends(self, texts: Sequence[str], limit: int) -> npt.NDArray[np.int32]:
        """Characters [n] of each text that fit into `limit` tokens."""
        return np.array([_end(encoding, limit) for encoding in self._encodings(texts)], dtype=np.int32)

    def _encodings(self, texts: Sequence[str]) -> Iterator[Any]:
        for group in _groups(texts):
            yield from self.tokenizer.encode_batch(group)


def _end(encoding: Any, limit: int) -> int:
    words = [span for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]
    room = limit - (len(encoding) - len(words))
    kept = words[: max(room, 0)]
    return int(kept[-1][1]) if kept else 0


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def distribution(counts: Counts) -> dict[str, Any]:
    """Mean, percentiles and a histogram of token counts; edges are token counts, the last bin includes its end."""
    edges = np.unique(np.linspace(counts.min(), counts.max() + 1, 21).round().astype(int))
    histogram = np.histogram(counts, bins=edges)[0]
    return {
        "mean": round(float(counts.mean()), 2),
        "p50": int(np.percentile(counts, 50)),
        "p95": int(np.percentile(counts, 95)),
        "max": int(counts.max()),
        "histogram": {"edges": edges.tolist(), "counts": histogram.tolist()},
    }
