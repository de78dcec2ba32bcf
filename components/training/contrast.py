"""The contrast between impressions in a table and in words: stage 1 of CTRL, and a term beside the clicks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from components.dataset.training_set import SplitArrays
from components.objectives.contrastive import equal_pairs, info_nce, shared_info_nce
from components.objectives.heads import Heads
from components.objectives.settings import ContrastSettings
from components.training.group import Group
from components.training.texts import Texts

#: File of the projections beside an aligned checkpoint.
HEADS = "heads.safetensors"


class Contrast(nn.Module):
    """Says how well representations [N, width] of impressions tell their own texts from those of the others.

    Args:
        texts: The PLM's vectors by part and row.
        parts: The rows of each part that is asked for.
        width: Width of the representation.
        settings: Similarity, temperature and what is no negative.
    """

    def __init__(self, texts: Texts, parts: Mapping[str, SplitArrays], width: int, settings: ContrastSettings) -> None:
        super().__init__()
        self.texts, self.settings = texts, settings
        self.heads = Heads(texts.width, width, settings)
        device = texts.device
        keys = {part: np.stack([rows.user_codes, rows.item_codes], 1) for part, rows in parts.items()}
        self.pairs = {part: torch.from_numpy(pairs).to(device) for part, pairs in keys.items()}

    def save(self, folder: Path) -> None:
        """Write the projections, so that the contrast can go on beside the clicks. They are never served."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.heads.state_dict().items()}
        save_file(state, str(folder / HEADS))

    def project(self, part: str, rows: Tensor, representation: Tensor) -> tuple[Tensor, Tensor]:
        """Texts and representations in the common space, [N, projection] each."""
        return self.heads.project(self.texts(part, rows), representation)

    def same(self, part: str, rows: Tensor, others: Tensor | None = None) -> Tensor:
        """Which rows are no negatives of each other [n, N]: one user and item, or texts that nobody can tell apart.

        Of the n rows with the N others, or with themselves.
        """
        others = rows if others is None else others
        keys, texts = self.pairs[part], self.texts
        return equal_pairs(keys[rows], keys[others]) | equal_pairs(
            texts.numbers(part, rows), texts.numbers(part, others)
        )

    def forward(self, part: str, rows: Tensor, representation: Tensor, group: Group, whole: int) -> Tensor:
        """The symmetric InfoNCE of these rows of a part, a scalar.

        In a group, a process's part of it over the `whole` rows that all processes hold: each text meets them all.
        """
        text, table = self.heads.sub_vectors(*self.project(part, rows, representation))
        every = group.whole_batch(rows, whole)
        similarities = self.heads.compare(text, group.whole_batch(table, whole))
        same = self.same(part, rows, every) if self.settings.mask_duplicates else None
        return info_nce_of(group, whole, *similarities, self.settings.temperature, same)


def info_nce_of(
    group: Group, whole: int, by_text: Tensor, by_table: Tensor, temperature: float, same: Tensor | None
) -> Tensor:
    """The symmetric InfoNCE of similarities with the `whole` rows that all processes hold; in a group its own part."""
    if group.size == 1:
        return info_nce(by_text, by_table, temperature, same)
    return shared_info_nce(by_text, by_table, temperature, same, group.share(whole), group.gather_differentiably)
