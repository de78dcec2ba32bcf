"""DeepFM: a factorisation machine and an MLP over the same rows (Guo et al. 2017, arXiv 1703.04247)."""

from __future__ import annotations

import torch
from torch import Tensor

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, FirstOrder, mlp


def second_order(embedded: Tensor) -> Tensor:
    """Sum over all pairs of fields of the elementwise product of their rows: [batch, F, dim] -> [batch, dim].

    Its sum over `dim` is the second term of eq. 2; ½ ((Σ v)² - Σ v²) has it in linear time (Rendle 2010, lemma 3.1).
    """
    return 0.5 * (embedded.sum(1).square() - embedded.square().sum(1))


class DeepFM(CollaborativeModel):
    """Eq. 1: sigmoid(y_FM + y_DNN), y_FM = Σ w_i + Σ_{i<j} <v_i, v_j> (eq. 2), y_DNN an MLP (eq. 3, 4).

    Representation: first-order weights and the second-order vector (both additive), then the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        self.first_order = FirstOrder(layout)
        self.deep = mlp(self.fields * config.embedding_dim, config)
        additive = self.fields + config.embedding_dim
        self.set_width(additive + config.hidden[-1], additive=additive)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[first order, second order, MLP] of shape [batch, F + dim + hidden[-1]]."""
        return torch.cat([self.first_order(x), second_order(embedded), self.deep(embedded.flatten(1))], dim=1)
