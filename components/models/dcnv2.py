"""DCN-V2: crosses by a matrix, of full rank or of low-rank experts (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.models.base import BackboneConfig
from components.models.dcn import DCN
from components.models.folding import Folding, SplitLinear, SplitMlp, output_weights


class FullCross(nn.Module):
    """Eq. 1: x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l, all of shape [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(width, width)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """The next x for the network's first and its current one."""
        return torch.addcmul(x, first, self.matrix(x))


class ExpertCross(nn.Module):
    """Section 3.5: x_{l+1} = Σ_i G_i(x_l) E_i(x_l) + x_l, E_i(x) = x_0 ⊙ (U_i g(C_i g(V_iᵀ x)) + b_l).

    g is tanh, and G a softmax over the K experts; U_i, V_i are [width, rank], C_i is [rank, rank]. The gates sum to
    1, so x_0 and b_l stand outside the sum.
    """

    def __init__(self, width: int, rank: int, experts: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(experts, width, rank))
        self.core = nn.Parameter(torch.empty(experts, rank, rank))
        self.up = nn.Parameter(torch.empty(experts, rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, experts, bias=False)
        for weight in (self.down, self.core, self.up):
            for expert in weight:
                nn.init.xavier_normal_(expert)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """The next x for the network's first and its current one."""
        inner = torch.tanh(torch.tanh(x @ self.down) @ self.core)  # [experts, batch, rank]
        gates = torch.softmax(self.gate(x), dim=-1).T.unsqueeze(-1)
        mixed = ((gates * inner) @ self.up).sum(0)
        return torch.addcmul(x, first, mixed + self.bias)


class DCNv2(DCN):
    """Cross network beside an MLP (the paper's parallel structure, section 3.4).

    Full rank by default; `cross_rank` and `cross_experts` give the mixture. Representation: the last cross layer,
    then the MLP's last layer.
    """

    def cross_layer(self, width: int, config: BackboneConfig) -> nn.Module:
        """A layer with a whole matrix, or with a mixture of low-rank ones."""
        if config.cross_rank == 0:
            return FullCross(width)
        return ExpertCross(width, config.cross_rank, config.cross_experts)

    def fold(self) -> Folding | None:
        """The first and the last cross layer's products are sums over the fields; a mixture of experts is none."""
        return FoldedDCNv2(self) if self.config.cross_rank == 0 else None


class FoldedDCNv2(Folding):
    """Parts of an item: its rows, its parts of W_0 x_0 and of the output's [n, F * dim] each, its part of the MLP.

    The output layer's weights w meet the last cross as w · (x_0 ⊙ (W x + b)) = x · Wᵀ (w ⊙ x_0) + x_0 · (w ⊙ b): what
    stands beside x is linear in x_0, as is W_0 x_0. Of L layers, L - 2 keep a product for each item.
    """

    def __init__(self, model: DCNv2) -> None:
        super().__init__(model)
        crossed, deep = output_weights(model, model.width - model.config.hidden[-1], model.config.hidden[-1])
        layers = [layer for layer in model.cross if isinstance(layer, FullCross)]
        first, last = layers[0].matrix, layers[-1].matrix
        self.first = SplitLinear(first.weight, first.bias, self.sides) if len(layers) > 1 else None
        self.between = nn.ModuleList(layers[1:-1])
        self.last = SplitLinear((crossed * last.weight).T, crossed.squeeze(1), self.sides)
        self.known = nn.Parameter(crossed * last.bias.detach().unsqueeze(1))
        self.deep = SplitMlp(model.deep, deep, self.sides)

    def item(self, ids: Tensor) -> tuple[Tensor, ...]:
        """As the class says; the first product is left out where the first layer is the last."""
        rows: Tensor = self.item_rows(ids)
        first = [] if self.first is None else [self.first.item(rows)]
        return rows, *first, self.last.item(rows), self.deep.first.item(rows)

    def meet(self, ids: Tensor, *parts: Tensor) -> Tensor:
        """Logits [n, 1] less the bias."""
        of_item, *product, last, hidden = parts
        rows: Tensor = self.request_rows(ids)
        crossed = first = self.sides.join(rows, of_item).flatten(1)
        if self.first is not None:
            crossed = torch.addcmul(first, first, self.first.request(rows) + product[0])
        for layer in self.between:
            crossed = layer(first, crossed)
        output = (crossed * (self.last.request(rows) + last)).sum(1, keepdim=True) + first @ self.known
        return output + self.deep.share(rows, hidden)
