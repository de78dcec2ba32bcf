"""The tokens of prompts, and the field whose value each of them belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.models.plm import PlmSpec, load_tokenizer, locate

#: Texts handed to the tokenizer at once.
AT_ONCE = 8192
#: What tokenizers call the token that stands for a hidden one.
MASKS = ("[MASK]", "<mask>", "<|mask|>")
#: A token that belongs to no value: of a field's name, between values, special, or padding.
NONE = -1

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Padded:
    """Some texts side by side: token ids [m, T], the number of each token's field or NONE [m, T], and lengths [m]."""

    ids: Tensor
    fields: Tensor
    lengths: Tensor

    @property
    def there(self) -> Tensor:
        """Where tokens are, and no padding [m, T]."""
        return torch.arange(self.ids.shape[1]) < self.lengths.unsqueeze(1)


@dataclass(frozen=True)
class PromptTokens:
    """Token ids and field numbers of texts, one after the other; `starts` [texts + 1] tells where each begins.

    Texts that no row in question reads have no tokens. Everything lies on the CPU: these are some bytes a token.
    """

    ids: Tensor
    fields: Tensor
    starts: Tensor
    names: tuple[str, ...]
    mask: int

    @classmethod
    def of(cls, texts: Any, spec: PlmSpec, needed: Ints) -> Self:
        """Cut texts into tokens as a PLM wants them.

        Args:
            texts: Columns text and spans of the prompts, all texts.
            spec: The PLM.
            needed: Numbers of the texts that are read, ascending.

        Raises:
            UserError: the PLM knows no token for what is hidden.
        """
        tokenizer = load_tokenizer(spec, locate(spec), spec.max_length)
        mask = next((number for name in MASKS if (number := tokenizer.token_to_id(name)) is not None), None)
        if mask is None:
            raise UserError(
                f"plm.name: '{spec.name}' has no mask token, so that no word can be hidden; give an encoder"
            )
        names: dict[str, int] = {}
        lengths = np.zeros(texts.num_rows, dtype=np.int64)
        ids, fields = [], []
        for number, found, of in _tokens(texts, tokenizer, spec.prefix, needed, names):
            lengths[number] = len(found)
            ids.append(found)
            fields.append(of)
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
        return cls(_joined(ids, np.int32), _joined(fields, np.int16), starts, tuple(names), mask)

    def padded(self, numbers: Tensor) -> Padded:
        """The texts of these numbers [m], padded on the right to the longest."""
        starts = self.starts[numbers]
        lengths = self.starts[numbers + 1] - starts
        longest = int(lengths.max()) if len(numbers) else 0
        places = torch.arange(longest)
        there = places < lengths.unsqueeze(1)
        at = torch.where(there, starts.unsqueeze(1) + places, 0)
        ids = torch.where(there, self.ids[at].long(), 0)
        fields = torch.where(there, self.fields[at].long(), NONE)
        return Padded(ids, fields, lengths)

    def said(self) -> Tensor:
        """Ids of all tokens that belong to a value, each once, ascending."""
        ids: Tensor = torch.unique(self.ids[self.fields != NONE].long())
        return ids


def _joined(parts: list[Any], kind: Any) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(kind) if parts else np.empty(0, kind))


def _tokens(
    texts: Any, tokenizer: Any, prefix: str, needed: Ints, names: dict[str, int]
) -> Iterator[tuple[int, Ints, Ints]]:
    """Number, token ids and field numbers of each needed text; `names` numbers the fields as they come."""
    for start in range(0, len(needed), AT_ONCE):
        numbers = needed[start : start + AT_ONCE]
        chunk = texts.take(numbers)
        spans = chunk["spans"].to_pylist()
        encodings = tokenizer.encode_batch([prefix + text for text in chunk["text"].to_pylist()])
        for number, encoding, of in zip(numbers.tolist(), encodings, spans, strict=True):
            values = [(names.setdefault(one["field"], len(names)), one["start"], one["end"]) for one in of]
            yield number, np.array(encoding.ids), token_fields(encoding, values, len(prefix))


def token_fields(encoding: Any, values: Sequence[tuple[int, int, int]], shift: int = 0) -> Ints:
    """The field of each token of a text, or NONE.

    A token belongs to a value if it holds a character of it. Tokenizers that cut at blanks and marks never join one of
    a value's with one of a name's.

    Args:
        encoding: What a `tokenizers.Tokenizer` made of the text.
        values: Number of the field, first character and the one behind the last of each value, in order.
        shift: Characters before the text.
    """
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) - shift
    if not values:
        return np.full(len(offsets), NONE)
    number, first, behind = (np.array(column) for column in zip(*values, strict=True))
    place = np.searchsorted(behind, offsets[:, 0], side="right")
    inside = place < len(values)
    place = np.minimum(place, len(values) - 1)
    inside &= (first[place] < offsets[:, 1]) & (np.array(encoding.special_tokens_mask) == 0)
    return np.where(inside, number[place], NONE)


class TokenRows:
    """Which texts each impression reads, and their tokens.

    Args:
        tokens: Of all texts that the parts read.
        index: Text number of each row by part and column: user_text and item_text, or row_text.
    """

    def __init__(self, tokens: PromptTokens, index: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.tokens = tokens
        self.columns = tuple(next(iter(index.values())))
        self.index = {part: torch.stack([of[name] for name in self.columns], 1) for part, of in index.items()}

    @classmethod
    def read(cls, prompts: Path, spec: PlmSpec, parts: Mapping[str, Tensor | None]) -> Self:
        """The tokens that rows of some parts read.

        Args:
            prompts: The prompt_transform step's folder.
            spec: The PLM.
            parts: The rows in question of each part; None for all of them.

        Raises:
            UserError: there are no prompts, or the PLM knows no token for what is hidden.
        """
        said = PromptSet.open(prompts)
        index = {
            part: {name: torch.from_numpy(ids.astype(np.int64)) for name, ids in said.index(part).items()}
            for part in parts
        }
        chosen = [of if rows is None else of[rows] for part, rows in parts.items() for of in index[part].values()]
        needed = torch.unique(torch.cat(chosen)).numpy()
        return cls(PromptTokens.of(said.texts(["text", "spans"]), spec, needed), index)

    def numbers(self, part: str, rows: Tensor) -> Tensor:
        """Text numbers [n, columns] of these rows of a part, on the CPU."""
        return self.index[part][rows.cpu()]
