"""What is hidden of the texts of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.objectives.masks import draw
from components.reconstruct.settings import ReconstructSettings
from components.training.tokens import NONE, TokenRows


@dataclass(frozen=True)
class HiddenWords:
    """Texts of which something is hidden: their numbers [m], where [m, T], and of each hidden token its row and id [h].

    `count` is the number of hidden tokens of the whole batch, of which these may be a part, and one at least.
    """

    numbers: Tensor
    hidden: Tensor
    rows: Tensor
    truth: Tensor
    owners: Tensor
    count: int

    def of(self, share: slice) -> HiddenWords:
        """Those of a part of the batch's rows, which are numbered from its beginning on."""
        texts = (self.owners >= share.start) & (self.owners < share.stop)
        tokens = (self.rows >= share.start) & (self.rows < share.stop)
        own = self.numbers[texts], self.hidden[texts], self.rows[tokens] - share.start, self.truth[tokens]
        return HiddenWords(*own, self.owners[texts] - share.start, self.count)


def hide_words(
    texts: TokenRows, part: str, rows: Tensor, settings: ReconstructSettings, generator: torch.Generator
) -> HiddenWords:
    """Hide of each row's texts whole values, or single tokens of values; never a token of a field's name."""
    numbers = texts.numbers(part, rows)
    padded = texts.tokens.padded(numbers.flatten())
    (count, columns), longest = numbers.shape, padded.fields.shape[1]
    of_value = padded.fields != NONE
    if settings.text_masks == "token":
        hidden = draw(of_value.view(count, -1), settings.text_ratio, generator).view(-1, longest)
    else:
        names = len(texts.tokens.names)
        there = torch.zeros(len(padded.fields), names + 1, dtype=torch.bool).scatter(1, padded.fields + 1, True)
        drawn = draw(there[:, 1:].view(count, columns, names).any(1), settings.text_ratio, generator)
        of_text = drawn.repeat_interleave(columns, dim=0)
        hidden = of_text.gather(1, padded.fields.clamp(min=0)) & of_value
    touched = hidden.any(1)
    owners = torch.arange(count).repeat_interleave(columns)[touched]
    hidden = hidden[touched]
    tokens = owners.repeat_interleave(hidden.sum(1))
    truth = padded.ids[touched][hidden]
    return HiddenWords(numbers.flatten()[touched], hidden, tokens, truth, owners, max(1, len(truth)))
