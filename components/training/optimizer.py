"""AdamW whose step costs what the batch read, not what the vocabulary holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LazyAdam(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019), lazy where a gradient is sparse.

    Of a table with sparse gradients only the rows that a batch read are moved, by Adam's rule (Kingma and Ba 2015,
    algorithm 1) with the bias correction of the common step: moments of other rows do not fade meanwhile, and their
    weights do not decay. Everything else goes through torch's fused AdamW.

    Args:
        parameters: Weights, or groups of them with a rate of their own.
        lr: Learning rate of those without.
        weight_decay: Decoupled weight decay; 0 makes it Adam.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], lr: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move all weights that have a gradient; sparse gradients are gone afterwards."""
        assert closure is None  # noqa: S101 - nobody here evaluates a loss twice
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.is_sparse:
                    self._move_rows(parameter, gradient.coalesce(), group)
                    parameter.grad = None
        super().step()

    def _move_rows(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (first, second) = float(state["step"]), group["betas"]
        rows, values = gradient.indices()[0], gradient.values()
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - first)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(second).addcmul_(values, values, value=1 - second)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        weights = parameter.index_select(0, rows).mul_(1 - group["lr"] * group["weight_decay"])
        scale = square.sqrt_().div_((1 - second**step) ** 0.5).add_(group["eps"])
        weights.addcdiv_(mean, scale, value=-group["lr"] / (1 - first**step))
        parameter.index_copy_(0, rows, weights)
