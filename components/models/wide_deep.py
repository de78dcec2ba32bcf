"""Wide & Deep: memory and generalisation side by side (Cheng et al. 2016, arXiv 1606.07792)."""

from __future__ import annotations

import torch
from torch import Tensor

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, FirstOrder, mlp
from components.models.folding import Folding, SplitFirstOrder, SplitMlp, output_weights


class WideDeep(CollaborativeModel):
    """Eq. 3: sigmoid(w_wide x + w_deep a + b), where a comes from eq. 2, an MLP over the fields' rows.

    The wide part holds a weight for each field's value. The hand-made crosses of eq. 1 are left to whoever writes
    them as a field of the DatasetSpec. Representation: the wide weights (additive), then the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        self.wide = FirstOrder(self.layout)
        self.deep = mlp(self.fields * config.embedding_dim, config)
        self.set_width(self.fields + config.hidden[-1], additive=self.fields)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[wide weights, MLP] of shape [batch, F + hidden[-1]]."""
        return torch.cat([self.wide(x), self.deep(embedded.flatten(1))], dim=1)

    def fold(self) -> Folding:
        """The wide weights and the MLP's first layer are sums over the fields."""
        return FoldedWideDeep(self)


class FoldedWideDeep(Folding):
    """Parts of an item: its wide weights' sum [n, 1], and its part of the MLP's first layer [n, hidden[0]]."""

    def __init__(self, model: WideDeep) -> None:
        super().__init__(model)
        wide, deep = output_weights(model, model.fields, model.config.hidden[-1])
        self.wide = SplitFirstOrder(model.wide, wide, self.sides)
        self.deep = SplitMlp(model.deep, deep, self.sides)

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        return self.wide.item(ids), self.deep.first.item(self.item_rows(ids))

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        wide, hidden = parts
        return self.wide.request(ids) + wide + self.deep.share(self.request_rows(ids), hidden)
