"""DCN: explicit crosses of bounded degree (Wang et al. 2017, arXiv 1708.05123)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp
from components.models.folding import Folding, SplitLinear, SplitMlp, output_weights


class CrossLayer(nn.Module):
    """Eq. 3: x_{l+1} = x_0 (x_l · w_l) + b_l + x_l, all of shape [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """The next x for the network's first and its current one."""
        return torch.addcmul(x + self.bias, first, self.weight(x))


class DCN(CollaborativeModel):
    """Cross network (eq. 3) beside an MLP (eq. 4), side by side before the output (eq. 5).

    Representation: the last cross layer, then the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        width = self.fields * config.embedding_dim
        self.cross = nn.ModuleList(self.cross_layer(width, config) for _ in range(config.cross_layers))
        self.deep = mlp(width, config)
        self.set_width(width + config.hidden[-1])

    def cross_layer(self, width: int, config: BackboneConfig) -> nn.Module:
        """One layer of the cross network, called with the network's first row and its current one."""
        del config
        return CrossLayer(width)

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[crosses, MLP] of shape [batch, F * dim + hidden[-1]]."""
        del x
        crossed = first = embedded.flatten(1)
        for layer in self.cross:
            crossed = layer(first, crossed)
        return torch.cat([crossed, self.deep(first)], dim=1)

    def fold(self) -> Folding | None:
        """Every cross is x_0 times a number, and that number a sum over the fields."""
        return FoldedDCN(self)


class FoldedDCN(Folding):
    """Parts of an item: its shares of x_0 · w_l for each layer and the output [n, L + 1], its part of the MLP.

    By induction x_l = a_l x_0 + c_l with c_l = Σ_{k<l} b_k: eq. 3 gives a_{l+1} = a_l + a_l (x_0 · w_l) + c_l · w_l,
    and the last term is known beforehand.
    """

    known: Tensor

    def __init__(self, model: DCN) -> None:
        super().__init__(model)
        crossed, deep = output_weights(model, model.width - model.config.hidden[-1], model.config.hidden[-1])
        crossed = crossed.squeeze(1)
        layers = [layer for layer in model.cross if isinstance(layer, CrossLayer)]
        weights = torch.stack([*(layer.weight.weight[0] for layer in layers), crossed])
        before = torch.stack([torch.zeros_like(crossed), *(layer.bias for layer in layers)]).cumsum(0)
        self.register_buffer("known", (before * weights).sum(1).detach())
        self.products = SplitLinear(weights, torch.zeros(len(weights)), self.sides)
        self.deep = SplitMlp(model.deep, deep, self.sides)

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says."""
        rows: Tensor = self.item_rows(ids)
        return self.products.item(rows), self.deep.first.item(rows)

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        products, hidden = parts
        rows: Tensor = self.request_rows(ids)
        *layers, output = (self.products.request(rows) + products).split(1, dim=1)  # type: ignore[no-untyped-call]
        factor = torch.ones_like(output)
        for product, known in zip(layers, self.known, strict=False):
            factor = factor + factor * product + known
        crossed: Tensor = factor * output + self.known[-1]
        return crossed + self.deep.share(rows, hidden)
