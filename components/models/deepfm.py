"""DeepFM: a factorisation machine and an MLP over the same rows (Guo et al. 2017, arXiv 1703.04247)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, FirstOrder, mlp
from components.models.folding import Folding, SplitFirstOrder, SplitMlp, output_weights


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
        self.first_order = FirstOrder(self.layout)
        self.deep = mlp(self.fields * config.embedding_dim, config)
        additive = self.fields + config.embedding_dim
        self.set_width(additive + config.hidden[-1], additive=additive)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[first order, second order, MLP] of shape [batch, F + dim + hidden[-1]]."""
        return torch.cat([self.first_order(x), second_order(embedded), self.deep(embedded.flatten(1))], dim=1)

    def fold(self) -> Folding:
        """Sums over the fields, all of them: of weights, of rows, of their squares, and the MLP's first layer."""
        return FoldedDeepFM(self)


class FoldedDeepFM(Folding):
    """Parts of an item: its weights' sum less half its squares [n, 1], its rows' sum [n, dim], its part of the MLP.

    Of the square of a sum the request's rows are known once: ½ ((Σ_u v + Σ_i v)² - Σ_u v² - Σ_i v²).
    """

    def __init__(self, model: DeepFM) -> None:
        super().__init__(model)
        widths = model.fields, model.config.embedding_dim, model.config.hidden[-1]
        first, second, deep = output_weights(model, *widths)
        self.first_order = SplitFirstOrder(model.first_order, first, self.sides)
        self.second = nn.Parameter(0.5 * second)
        self.deep = SplitMlp(model.deep, deep, self.sides)

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        rows: Tensor = self.item_rows(ids)
        linear = self.first_order.item(ids) - rows.square().sum(1) @ self.second
        return linear, rows.sum(1), self.deep.first.item(rows)

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        linear, total, hidden = parts
        rows: Tensor = self.request_rows(ids)
        own = self.first_order.request(ids) - rows.square().sum(1) @ self.second
        second = (rows.sum(1) + total).square() @ self.second
        return own + linear + second + self.deep.share(rows, hidden)
