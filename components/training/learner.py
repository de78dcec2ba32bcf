"""A click model in training, with what is learnt beside it and never served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.models.base import CollaborativeModel
from components.training.contrast import Contrast
from components.training.group import Group
from components.training.newcomers import Hiding, RowMaps
from components.training.settings import LoopSettings
from components.training.texts import TextRows


class Learner(nn.Module):
    """The model, and what may stand beside it: hidden ids, mapped rows, and alignment kept on as a further term.

    Args:
        model: The collaborative model.
        hiding: Hides users and items of train rows.
        maps: Adds what the texts tell to the rows of users and items; needs `texts`.
        texts: The PLM's vectors.
        contrast: The alignment's term.
        weight: The weight of that term.
        rows: Rows of a batch that the term looks at; 0 for all of them.
    """

    def __init__(
        self,
        model: CollaborativeModel,
        *,
        hiding: Hiding | None = None,
        maps: RowMaps | None = None,
        texts: TextRows | None = None,
        contrast: Contrast | None = None,
        weight: float = 0.0,
        rows: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.hiding, self.maps, self.texts = model, hiding, maps, texts
        self.contrast, self.weight, self.rows = contrast, weight, rows

    def embed(self, ids: Tensor, part: str, rows: Tensor) -> Tensor:
        """The fields' rows [batch, F, dim] of ids [batch, W] that lie at `rows` of a part."""
        embedded: Tensor = self.model.embedding(ids)
        if self.maps is None or self.texts is None:
            return embedded
        return self.maps.add_to(embedded, self.texts, part, rows)

    def losses(
        self,
        ids: Tensor,
        labels: Tensor,
        rows: Tensor,
        settings: LoopSettings,
        generator: torch.Generator,
        group: Group,
        whole: int,
    ) -> tuple[Tensor, Tensor]:
        """The clicks' cross-entropy, and what is minimised: it, the L2 penalty and the alignment's term.

        The rows are a process's part of a batch of `whole` rows, and so are the losses of the batch's.
        """
        share = len(labels) / whole
        if self.hiding is not None:
            ids = self.hiding(ids, generator, group, whole)
        embedded = self.embed(ids, "train", rows)
        representation = self.model.interact(embedded, ids)
        loss = functional.binary_cross_entropy_with_logits(self.model.logits(representation), labels) * share
        objective = loss
        if settings.embedding_l2 > 0:
            # On the rows that the batch read, so that its cost does not grow with the vocabulary.
            flat = embedded.flatten()
            objective = objective + (settings.embedding_l2 / len(labels) * share) * flat.dot(flat)
        if self.contrast is not None and self.weight > 0:
            # Of fewer rows than all, every process looks at equally many.
            count = self.rows // group.size * group.size if 0 < self.rows < whole else whole
            mine = group.share(count)
            seen = slice(0, mine.stop - mine.start)
            term = self.contrast("train", rows[seen], representation[seen], group, count)
            objective = objective + self.weight * term
        return loss, objective

    def weight_groups(self, settings: LoopSettings) -> list[dict[str, Any]]:
        """The optimizer's groups of weights, each with its rate: embedding rows may have one of their own."""
        return self.groups_without([], settings)

    def groups_without(self, others: Iterable[nn.Parameter], settings: LoopSettings) -> list[dict[str, Any]]:
        """The groups of all weights but some."""
        rows = {id(parameter) for parameter in self.model.embedding.parameters()}
        left_out = {id(parameter) for parameter in others}
        kinds: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for parameter in self.parameters():
            if id(parameter) not in left_out:
                kinds[id(parameter) in rows].append(parameter)
        rates = {False: settings.learning_rate, True: settings.learning_rate * settings.embedding_rate}
        return [{"params": parameters, "lr": rates[are_rows]} for are_rows, parameters in kinds.items()]

    def predict(
        self, part: str, ids: npt.NDArray[np.integer], batch_size: int = 8192, first: int = 0
    ) -> npt.NDArray[np.float32]:
        """Click probabilities [n] of the rows of a part from `first` on, given as ids [n, W], in eval mode."""
        device = next(self.parameters()).device
        self.eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(ids), batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(ids[start : start + batch_size])).to(device)
                rows = torch.arange(first + start, first + start + len(batch), device=device)
                logits = self.model.logits(self.model.interact(self.embed(batch, part, rows), batch))
                found.append(torch.sigmoid(logits).cpu().numpy())
        return np.concatenate(found) if found else np.empty(0, np.float32)
