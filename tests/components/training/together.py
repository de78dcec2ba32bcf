"""What the processes of a group compute, for test_group.py; torchrun imports it in each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from components.dataset.errors import UserError
from components.objectives.contrastive import equal_pairs, info_nce, max_sim, shared_info_nce
from components.training.group import Group
from components.training.shared import PIECE, WHOLE

#: Odd, so that the processes' parts differ in length.
ROWS, FEATURES = 13, 6


class Net(nn.Module):
    """A sparse table, a dense layer and batch norm: each way in which gradients and statistics are brought together."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, FEATURES, padding_idx=0, sparse=True)
        self.layers = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, ids, x):
        return self.layers(self.table(ids) + x).squeeze(-1)


def batch():
    random = torch.Generator().manual_seed(4)
    return (
        torch.randint(0, 9, (ROWS,), generator=random),
        torch.randn(ROWS, FEATURES, generator=random) + 3,
        torch.randn(ROWS, generator=random),
    )


def regression(group: Group) -> dict[str, torch.Tensor]:
    """Gradients, statistics and outputs of one step of the mean squared error over the whole batch."""
    # Another seed in each process: only the first one's weights count.
    torch.manual_seed(0 if group.first else 99)
    net = Net()
    group.prepare(net, seed=0)
    ids, x, y = (part[group.share(ROWS)] for part in batch())
    out = net(ids, x)
    ((out - y).square().sum() / ROWS).backward()
    group.sum_gradients(net.parameters())
    found = {f"gradient.{name}": value.grad.to_dense() for name, value in net.named_parameters()}
    found |= {f"buffer.{name}": value for name, value in net.named_buffers()}
    return found | {"out": group.whole_batch(out.detach(), ROWS)}


def contrast(group: Group, subspaces: int) -> dict[str, torch.Tensor]:
    """The contrastive loss over the whole batch and its gradients, some pairs of which are equal."""
    random = torch.Generator().manual_seed(5)
    sides = [torch.randn(ROWS, subspaces, 4, generator=random, requires_grad=True) for _ in "tr"]
    keys = torch.arange(ROWS).remainder(5).unsqueeze(1)
    mine = group.share(ROWS)
    text, table = (side[mine] for side in sides)
    similarities = max_sim(text, group.whole_batch(table, ROWS))
    if group.size == 1:
        loss = info_nce(*similarities, 0.3, equal_pairs(keys))
    else:
        same = equal_pairs(keys[mine], keys)
        loss = shared_info_nce(*similarities, 0.3, same, mine, group.gather_differentiably)
    loss.backward()
    names = f"text{subspaces}", f"table{subspaces}"
    gradients = {name: group.sum(side.grad.clone()) for name, side in zip(names, sides, strict=True)}
    return {**gradients, f"loss{subspaces}": group.sum(loss.detach().clone())}


def everything(group: Group) -> dict[str, torch.Tensor]:
    """All of it, the same in a process alone and in a group."""
    return {**regression(group), **contrast(group, 1), **contrast(group, 3)}


def write_all(output: Path, shared: bool) -> None:
    """Write it, from every process under its own name: through gloo, and through shared memory with messages besides.

    Raises:
        RuntimeError: the processes were to share memory, and do not.
    """
    group = Group.join()
    _write(everything(replace(group, shared=None)), output / f"gloo.{group.rank}")
    if shared:
        if group.shared is None:
            raise RuntimeError("the processes share no memory")
        _write(everything(group), output / f"shared.{group.rank}")
        _write(messages(group), output / f"messages.{group.rank}")


def _write(found: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.contiguous().clone() for name, value in found.items()}, path)


#: One number, a few, more than a process adds up alone, and more than one piece, the last of them odd.
LENGTHS = (1, 13, WHOLE // 4 + 3, PIECE // 4 * 2 + 5)


def message(rank: int, length: int, kind: torch.dtype) -> torch.Tensor:
    """What a process has to say."""
    random = torch.Generator().manual_seed(100 * rank + length % 97)
    return torch.randint(-1000, 1000, (length,), generator=random).to(kind)


def messages(group: Group) -> dict[str, torch.Tensor]:
    """Sums and gathers of all lengths and types, of whole tensors and of columns."""
    found = {}
    for length in LENGTHS:
        for kind in (torch.float32, torch.float64, torch.int64):
            mine = message(group.rank, length, kind)
            name = f"{length}.{kind}"
            found[f"gather.{name}"] = group.gather(mine)
            found[f"sum.{name}"] = group.sum(mine)
    # In place, in a tensor whose numbers do not lie side by side.
    table = torch.stack([message(group.rank, 13, torch.float32)] * 3, dim=1)
    group.sum(table[:, 1])
    return {**found, "table": table}


def refuse(field: str) -> None:
    """What a worker does when its input is wrong."""
    raise UserError(f"{field}: write something else")
