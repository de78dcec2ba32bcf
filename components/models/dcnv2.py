"""DCN-V2: crosses by a matrix, of full rank or of low-rank experts (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.models.base import BackboneConfig
from components.models.dcn import DCN


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
