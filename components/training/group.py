"""The processes that train one model together. One process alone is a group of one, and pays nothing for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from components.training.device import pick_device
from components.training.shared import SharedMemory, share_of


@dataclass(frozen=True)
class Group:
    """A process's place among those that train together: batches are shared out, gradients added up.

    Every process draws the same global batch and reads its own part of it, and its loss is its part of the global
    batch's mean: the sum of the processes' gradients is then the gradient that one process would have computed.
    """

    rank: int
    size: int
    device: torch.device
    #: What sums and gathers go through instead of gloo, where there is such memory.
    shared: SharedMemory | None = field(default=None, compare=False)

    @classmethod
    def join(cls) -> Group:
        """The group that torchrun started this process in, else this process alone.

        NCCL with a GPU for each process where there are GPUs, else gloo.
        """
        if not started_by_torchrun():
            return cls(0, 1, pick_device())
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        rank, size, device = state.process_index, state.num_processes, state.device
        several = size > 1 and device.type == "cpu"
        return cls(rank, size, device, SharedMemory.of_this_machine(rank, size) if several else None)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Its part of a number of rows; the parts follow each other by rank."""
        return share_of(self.rank, self.size, rows)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.shared is not None:
            return self.shared.sum(value)
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def from_first(self, value: Tensor) -> Tensor:
        """The first process's value, in place."""
        if self.size > 1:
            distributed.broadcast(value, 0)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Every process's tensor of one and the same shape, side by side in a new first dimension [size, ...]."""
        if self.size == 1:
            return value.unsqueeze(0)
        if self.shared is not None:
            return self.shared.gather(value)
        parts = [torch.empty_like(value) for _ in range(self.size)]
        distributed.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    def gather_differentiably(self, value: Tensor) -> Tensor:
        """As `gather`, and gradients flow back to every process's own tensor."""
        if self.size == 1:
            return value.unsqueeze(0)
        return _Gather.apply(value, self)  # type: ignore[no-untyped-call, no-any-return]

    def whole_batch(self, part: Tensor, rows: int) -> Tensor:
        """All rows [rows, ...] of a batch of which each process holds its share; gradients flow back to it."""
        if self.size == 1:
            return part
        # Shares may differ by one row: each is filled up to the longest.
        longest = -(-rows // self.size)
        filled = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        parts = self.gather_differentiably(filled)
        shares = (share_of(rank, self.size, rows) for rank in range(self.size))
        return torch.cat([parts[rank, : own.stop - own.start] for rank, own in enumerate(shares)])

    def prepare(self, *modules: nn.Module, seed: int) -> None:
        """Let all processes begin with the first one's weights, and draw dropout masks of their own.

        Batch norm is told to take its statistics over the global batch, so that the loss curve does not depend on
        the number of processes. Dropout masks do depend on it: each process draws those of its own rows.
        """
        if self.size == 1:
            return
        for module in modules:
            for value in module.state_dict().values():
                self.from_first(value)
            _synchronise(module, self)
        torch.manual_seed(seed + self.rank)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place."""
        if self.size == 1:
            return
        found = [parameter for parameter in parameters if parameter.grad is not None]
        dense = [parameter.grad for parameter in found if parameter.grad is not None and not parameter.grad.is_sparse]
        # One message for all: a collective costs its latency, not its few megabytes.
        flat = self.sum(torch.cat([gradient.flatten() for gradient in dense]))
        for gradient, part in zip(dense, torch.split(flat, [gradient.numel() for gradient in dense]), strict=True):
            gradient.copy_(part.view_as(gradient))
        for parameter in found:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = self._sum_sparse(parameter.grad)

    def _sum_sparse(self, gradient: Tensor) -> Tensor:
        """The sum of gradients that hold only the rows a process read: the rows of all, side by side."""
        from accelerate.utils import gather, pad_across_processes

        mine = gradient.coalesce()
        # A shorter part is filled up with zeros for row 0, the padding row: they add nothing.
        padded = (pad_across_processes(part.contiguous(), dim=0) for part in (mine.indices()[0], mine.values()))
        indices, values = (gather(part) for part in padded)
        return torch.sparse_coo_tensor(indices.unsqueeze(0), values, gradient.shape).coalesce()


class _Gather(torch.autograd.Function):
    """What each process holds for all; the gradients of all for what each holds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.gather(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum(gradients[0].contiguous())[ctx.group.rank], None


def started_by_torchrun() -> bool:
    """Whether this process is one of a group."""
    return "LOCAL_RANK" in os.environ and "MASTER_ADDR" in os.environ


class GroupBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the global batch; in eval mode it is plain batch norm.

    torch's SyncBatchNorm does this on GPUs only.
    """

    group: Group

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows [n, C] of this process's part of the batch."""
        if not self.training:
            return super().forward(x)
        normalised, mean, variance, rows = _Normalise.apply(x, self.weight, self.bias, self.eps, self.group)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            # As in torch: the running variance is the unbiased one.
            for running, seen in ((self.running_mean, mean), (self.running_var, variance * rows / (rows - 1))):
                if running is not None:
                    running.lerp_(seen, self.momentum or 0.0)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return normalised  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """Batch norm over the rows of all processes: one message forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # As var_mean without correction, which over a first dimension takes a CPU thirty times as long.
        own_mean, own_variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        told = group.gather(torch.cat([own_mean, own_variance, x.new_full((1,), len(x))]))
        counts, rows = told[:, -1:], told[:, -1].sum()
        means, variances = told[:, :-1].chunk(2, dim=1)
        # Chan et al. 1983, eq. 2.1: no cancellation, unlike the mean square less the squared mean.
        mean = (counts * means).sum(0) / rows
        variance = (counts * (variances + (means - mean).square())).sum(0) / rows
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), rows)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, rows)
        return functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, scale, rows = ctx.saved_tensors
        gradient, normal = gradients[0], (x - mean).mul_(scale)
        of_bias, of_weight = gradient.sum(0), (gradient * normal).sum(0)
        by_bias, by_weight = ctx.group.sum(torch.stack([of_bias, of_weight])) / rows
        of_x = normal.mul_(-by_weight).add_(gradient).sub_(by_bias).mul_(weight * scale)
        return of_x, of_weight, of_bias, None, None


def _synchronise(module: nn.Module, group: Group) -> None:
    """Put a GroupBatchNorm in the place of every batch norm; parameters, statistics and names stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            norm = GroupBatchNorm(child.num_features, child.eps, child.momentum)
            norm.group = group
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, norm)
        else:
            _synchronise(child, group)
