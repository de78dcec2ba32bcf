"""Noise-contrastive estimation over all ids at once (Gutmann & Hyvärinen 2010; FLIP's masked tabular modelling)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class NoiseContrast(nn.Module):
    """Tells a true id from `noise` ids drawn by their frequency in the train part.

    The logit of an id f for a state q is q · row(f) + bias(f) - ln V - ln p(f) - ln K; the bias begins at
    ln p(f) + ln V, so that a fresh model's logits are q · row(f) - ln K.

    Args:
        counts: How often each id stands in the train part [V]; an id that never does counts once, and is no noise.
        width: Width of a state.
        noise: K, noise ids for each true one.
    """

    cumulated: Tensor
    correction: Tensor

    def __init__(self, counts: Tensor, width: int, noise: int) -> None:
        super().__init__()
        ids, self.noise = len(counts), noise
        log_p = (counts.clamp(min=1) / counts.sum()).double().log()
        self.table = nn.Embedding(ids, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.bias = nn.Parameter((log_p + math.log(ids)).float())
        self.register_buffer("correction", (math.log(ids) + log_p + math.log(noise)).float(), persistent=False)
        self.register_buffer("cumulated", counts.double().cumsum(0) / counts.sum(), persistent=False)

    def logits(self, states: Tensor, ids: Tensor) -> Tensor:
        """Logits [n, m] of ids [n, m] for states [n, width]."""
        return torch.einsum("nw,nmw->nm", states, self.table(ids)) + (self.bias - self.correction)[ids]

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Noise ids [rows, K], each with the probability of its frequency."""
        dice = torch.rand(rows, self.noise, dtype=torch.float64, generator=generator).to(self.cumulated.device)
        return torch.searchsorted(self.cumulated, dice, right=True).clamp(max=len(self.cumulated) - 1)

    def forward(self, states: Tensor, truth: Tensor, noise: Tensor) -> Tensor:
        """Losses [n]: binary cross-entropy summed over the true id and its noise.

        Args:
            states: [n, width].
            truth: True ids [n].
            noise: Noise ids [n, K].
        """
        logits = self.logits(states, torch.cat([truth.unsqueeze(1), noise], dim=1))
        target = torch.zeros_like(logits)
        target[:, 0] = 1.0
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
