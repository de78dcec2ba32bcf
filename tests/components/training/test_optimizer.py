"""The lazy Adam against torch's own, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn

from components.training.optimizer import LazyAdam

ROWS, WIDTH = 50, 4


def table(sparse=True):
    torch.manual_seed(0)
    return nn.Embedding(ROWS, WIDTH, sparse=sparse, padding_idx=0)


def train(made, optimizer, batches):
    target = torch.linspace(-1, 1, WIDTH)
    for ids in batches:
        optimizer.zero_grad(set_to_none=True)
        (made(ids) - target).square().sum().backward()
        optimizer.step()
    return made.weight.detach()


def some(rows=30, count=20, seed=1):
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(0, rows, (16,), generator=random) for _ in range(count)]


def test_sparse_rows_move_as_in_torchs_sparse_adam():
    mine, theirs = table(), table()
    found = train(mine, LazyAdam(mine.parameters(), lr=0.05), some())
    expected = train(theirs, torch.optim.SparseAdam(theirs.parameters(), lr=0.05), some())
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, table().weight)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_where_every_row_is_read_it_is_adamw(weight_decay):
    whole = [torch.arange(1, ROWS) for _ in range(10)]
    mine, theirs = table(), table(sparse=False)
    found = train(mine, LazyAdam(mine.parameters(), lr=0.05, weight_decay=weight_decay), whole)
    expected = train(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=weight_decay), whole)
    torch.testing.assert_close(found[1:], expected[1:])


def test_rows_that_no_batch_read_stay():
    made = table()
    before = made.weight.detach().clone()
    optimizer = LazyAdam(made.parameters(), lr=0.05, weight_decay=0.1)
    after = train(made, optimizer, some(rows=30))
    assert torch.equal(after[30:], before[30:])
    assert torch.equal(after[0], before[0])
    assert (after[1:30] != before[1:30]).any(1).all()
    assert optimizer.state[made.weight]["exp_avg"][30:].abs().sum() == 0


def test_dense_and_sparse_weights_go_through_one_optimizer():
    made, dense = table(), nn.Linear(WIDTH, 1)
    twin = copy.deepcopy(dense)
    optimizer = LazyAdam([*made.parameters(), *dense.parameters()], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for ids in some():
        rows = made(ids)
        for layer, of in ((dense, optimizer), (twin, theirs)):
            of.zero_grad(set_to_none=True)
            layer(rows if layer is dense else rows.detach()).square().mean().backward()
            of.step()
    torch.testing.assert_close(dense.weight, twin.weight)
    assert (made.weight[1:30] != table().weight[1:30]).any()


def test_its_state_can_be_kept_and_put_back():
    straight = table()
    expected = train(straight, LazyAdam(straight.parameters(), lr=0.05), some(count=12))
    made = table()
    first = LazyAdam(made.parameters(), lr=0.05)
    train(made, first, some(count=12)[:5])
    second = LazyAdam(made.parameters(), lr=0.05)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.testing.assert_close(train(made, second, some(count=12)[5:]), expected, rtol=0, atol=0)
