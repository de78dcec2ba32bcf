"""The PLM's vectors of impressions, on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.dataset.embeddings import EmbeddingSet
from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.dataset.splits import PARTS


class Texts(Protocol):
    """Vectors [len(rows), width] of rows of a part, and which texts they come from."""

    width: int

    @property
    def device(self) -> torch.device:
        """Where the vectors lie."""
        ...

    def __call__(self, part: str, rows: Tensor) -> Tensor:
        """The vectors."""
        ...

    def numbers(self, part: str, rows: Tensor) -> Tensor:
        """Text numbers [len(rows), columns]: equal numbers are equal texts."""
        ...


class TextRows:
    """The PLM's vectors of impressions: the text embeddings that an index names, side by side.

    Args:
        matrix: Embeddings [texts, d], float32.
        index: For each part, the text number of each row by column: user_text and item_text, or row_text.
        device: Where the vectors shall lie.
        liked: For each part, the numbers of the texts [n, L] whose mean stands behind those of the index; where a row
            has fewer, the number of texts.
    """

    def __init__(
        self,
        matrix: Tensor,
        index: Mapping[str, Mapping[str, Tensor]],
        device: torch.device,
        liked: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.matrix = matrix.to(device)
        self.columns = tuple(next(iter(index.values())))
        self.index = {
            part: torch.stack([numbers[name] for name in self.columns], 1).to(device) for part, numbers in index.items()
        }
        self.device = device
        self.dim = matrix.shape[1]
        self.liked = None if liked is None else {part: numbers.to(device) for part, numbers in liked.items()}
        # The texts' mean skips a row of zeros behind all others.
        self.padded = None if liked is None else functional.pad(self.matrix, (0, 0, 0, 1))
        self.width = self.dim * (len(self.columns) + (liked is not None))

    def __call__(self, part: str, rows: Tensor) -> Tensor:
        """Vectors [len(rows), width] of these rows of a part; the mean of no text is zero."""
        vectors = self.matrix[self.numbers(part, rows)].flatten(1)
        if self.liked is None or self.padded is None:
            return vectors
        liked = self.liked[part][rows]
        mean = functional.embedding_bag(liked, self.padded, mode="mean", padding_idx=len(self.matrix))
        return torch.cat([vectors, mean], dim=1)

    def beside(self, liked: Mapping[str, Tensor]) -> Self:
        """The same vectors, and behind them the mean of those of other texts, as `liked` in the constructor."""
        index = {part: dict(zip(self.columns, numbers.unbind(1), strict=True)) for part, numbers in self.index.items()}
        return type(self)(self.matrix, index, self.device, liked)

    def numbers(self, part: str, rows: Tensor) -> Tensor:
        """Text numbers [len(rows), columns] of these rows of a part: equal numbers are equal texts."""
        return self.index[part][rows]

    def of(self, side: str, part: str, rows: Tensor) -> Tensor:
        """Vectors [len(rows), dim] of the user's or the item's own text.

        Raises:
            UserError: the texts are of whole impressions.
        """
        return self.matrix[self.of_part(side, part)[rows]]

    def of_part(self, side: str, part: str) -> Tensor:
        """Numbers [n] of the user's or the item's own text, of all rows of a part.

        Raises:
            UserError: the texts are of whole impressions.
        """
        name = f"{side}_text"
        if name not in self.columns:
            raise UserError(f"there is no text for each {side} alone; write prompt.granularity: entity")
        return self.index[part][:, self.columns.index(name)]


def read_texts(prompts: Path, embeddings: list[Path], device: torch.device) -> tuple[TextRows, EmbeddingSet]:
    """The vectors of every part, and the encoding that they come from.

    Raises:
        UserError: the embeddings do not belong to the prompts, or are no numbers.
    """
    encoded, said = EmbeddingSet.open(embeddings), PromptSet.open(prompts)
    matrix = encoded.matrix()
    index = {part: {name: ids.astype(np.int64) for name, ids in said.index(part).items()} for part in PARTS}
    highest = max(int(numbers.max()) for columns in index.values() for numbers in columns.values())
    if highest >= len(matrix):
        raise UserError(f"the prompts name text {highest}, but there are {len(matrix)} embeddings; run encode again")
    unsound = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(unsound):
        raise UserError(f"the embedding of text {unsound[0]} holds what is no number; run encode again")
    tensors = {part: {name: torch.from_numpy(ids) for name, ids in columns.items()} for part, columns in index.items()}
    return TextRows(torch.from_numpy(matrix), tensors, device), encoded
