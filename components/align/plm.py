"""A PLM that learns with the collaborative model: its last layer, low-rank adapters, or all of it (CTRL, stage 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from components.align.settings import AlignSettings
from components.models.plm import load_plm, load_tokenizer, locate, pool
from components.models.tuning import learnt, save_learnt, trainable
from components.training.texts import TextRows


class LiveTexts(nn.Module):
    """The PLM's vectors of impressions as it is now, with gradients: what TextRows gives of a frozen one.

    Each different text of a batch is encoded once.

    Args:
        index: Which texts each row reads.
        texts: The texts in the order of their numbers.
        settings: The PLM, and what of it is trained.
    """

    def __init__(self, index: TextRows, texts: Sequence[str], settings: AlignSettings) -> None:
        super().__init__()
        self.index, self.texts, self.settings = index, list(texts), settings
        plm = load_plm(settings.plm)
        self.tokenizer = load_tokenizer(settings.plm, locate(settings.plm), settings.plm.max_length)
        self.model = trainable(plm, settings)
        self.width = plm.dim * len(index.columns)
        self.digest = plm.digest

    @property
    def device(self) -> torch.device:
        """Where the vectors come to lie."""
        return self.index.device

    def numbers(self, part: str, rows: Tensor) -> Tensor:
        """Text numbers [len(rows), columns] of these rows of a part."""
        return self.index.numbers(part, rows)

    def forward(self, part: str, rows: Tensor) -> Tensor:
        """Vectors [len(rows), width] of these rows of a part."""
        different, places = torch.unique(self.numbers(part, rows), return_inverse=True)
        return self.encode([self.texts[number] for number in different.tolist()])[places].flatten(1)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors [len(texts), dim]."""
        encodings = self.tokenizer.encode_batch([self.settings.plm.prefix + text for text in texts])
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding.ids)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(states, mask, self.settings.plm.pooling)

    def learnt(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        return learnt(self.model)

    def save(self, folder: Path) -> None:
        """Write what was trained, and of which PLM it is a part."""
        save_learnt(folder, self.model, self.settings, self.digest)
