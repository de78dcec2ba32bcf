"""Texts to batches of tokens: alike in length, bounded in tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from components.dataset.errors import UserError
from components.models.plm import PlmSpec, load_tokenizer

Ints = npt.NDArray[np.int32]
#: Characters handed to the tokenizer at once: bounds its memory whatever the texts' lengths.
CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Batch:
    """Texts of one block: their rows in it [n], their lengths in tokens [n], and all tokens [sum of lengths]."""

    block: int
    rows: Ints
    lengths: Ints
    tokens: Ints

    def to_bytes(self) -> bytes:
        """Number of texts, lengths and tokens, each int32."""
        return b"".join(part.tobytes() for part in (np.array([len(self.rows)], np.int32), self.lengths, self.tokens))


def unpack(content: bytes) -> list[Ints]:
    """The tokens of each text of a batch, from what `to_bytes` gave."""
    numbers = np.frombuffer(content, dtype=np.int32)
    ends = 1 + int(numbers[0])
    return np.split(numbers[ends:], np.cumsum(numbers[1:ends])[:-1])


@dataclass(frozen=True)
class Tokeniser:
    """Cuts texts into tokens as the PLM wants them, and packs them into batches."""

    tokenizer: Any
    prefix: str
    budget: int
    #: Stands for a text of no token at all, which a decoder's tokenizer makes of an empty one.
    nothing: int

    @classmethod
    def of(cls, plm: PlmSpec, folder: Any, budget: int) -> Self:
        """The tokeniser of a PLM that lies in `folder`, with `budget` tokens a batch."""
        tokenizer = load_tokenizer(plm, folder, limit=plm.max_length)
        known = (tokenizer.token_to_id(token) for token in ("</s>", "<|endoftext|>", "[SEP]", "<s>"))
        return cls(tokenizer, plm.prefix, budget, next((number for number in known if number is not None), 0))

    def batches(self, block: int, texts: Sequence[str]) -> Iterator[Batch]:
        """The batches of a block, long texts first, so that a block does not end on a long one."""
        ids = self.ids(texts)
        lengths = np.array([len(of) for of in ids], dtype=np.int32)
        order = np.argsort(-lengths, kind="stable").astype(np.int32)
        for rows in _groups(order, lengths, self.budget):
            yield Batch(block, rows, lengths[rows], np.concatenate([ids[row] for row in rows]))

    def ids(self, texts: Sequence[str]) -> list[Ints]:
        """Token ids of each text, at least one, special tokens among them.

        Raises:
            UserError: a text holds a lone surrogate, which no UTF-8 has.
        """
        found: list[Ints] = []
        for group in _pieces(texts):
            try:
                encodings = self.tokenizer.encode_batch([self.prefix + text for text in group])
            except (UnicodeEncodeError, TypeError):
                raise UserError(_not_utf8(texts)) from None
            found += [np.array(encoding.ids or [self.nothing], dtype=np.int32) for encoding in encodings]
        return found


def _not_utf8(texts: Sequence[str]) -> str:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"text {text[:60]!r} is not valid UTF-8; clean its source, then run prompt_transform again"
    return "a text cannot be cut into tokens; run prompt_transform again"


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= CHARACTERS or end == len(texts):
            yield list(texts[start:end])
            start, size = end, 0


def _groups(order: Ints, lengths: Ints, budget: int) -> Iterator[Ints]:
    """Rows in the given order, grouped so that rows x longest stays within the budget; a longer text goes alone."""
    start = 0
    while start < len(order):
        count = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count
