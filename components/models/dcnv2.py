"""DCN-V2: crosses by a matrix, of full rank or of low-rank experts (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel, mlp


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


class DCNv2(CollaborativeModel):
    """Cross network beside an MLP (the paper's parallel structure, section 3.4).

    Full rank by default; `cross_rank` and `cross_experts` give the mixture. Representation: the last cross layer,
    then the MLP's last layer.
    """

    def __init__(self, layout: InputLayout, config: BackboneConfig) -> None:
        super().__init__(layout, config)
        width = self.fields * config.embedding_dim
        self.cross = nn.ModuleList(_cross(width, config) for _ in range(config.cross_layers))
        self.deep = mlp(width, config)
        self.set_width(width + config.hidden[-1])

    def interact(self, embedded: Tensor, x: Tensor) -> Tensor:
        """[crosses, MLP] of shape [batch, F * dim + hidden[-1]]."""
        del x
        crossed = first = embedded.flatten(1)
        for layer in self.cross:
            crossed = layer(first, crossed)
        return torch.cat([crossed, self.deep(first)], dim=1)


def _cross(width: int, config: BackboneConfig) -> nn.Module:
    if config.cross_rank == 0:
        return FullCross(width)
    return ExpertCross(width, config.cross_rank, config.cross_experts)
