"""The PLM's vectors of impressions, on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

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
    """

    def __init__(self, matrix: Tensor, index: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        self.matrix = matrix.to(device)
        self.columns = tuple(next(iter(index.values())))
        self.index = {
            part: torch.stack([numbers[name] for name in self.columns], 1).to(device) for part, numbers in index.items()
        }
        self.device = device
        self.dim = matrix.shape[1]
        self.width = self.dim * len(self.columns)

    def __call__(self, part: str, rows: Tensor) -> Tensor:
        """Vectors [len(rows), width] of these rows of a part."""
        return self.matrix[self.numbers(part, rows)].flatten(1)

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
