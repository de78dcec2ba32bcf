"""The hand-written gradients, beside autograd's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from components.models.autoint import InteractingLayer
from components.models.config import BackboneConfig
from components.models.kernels import Dropout, FieldAttention


def by_definition(layer: InteractingLayer, rows: Tensor) -> Tensor:
    """Eq. 5 to 8, one head after the other."""
    query, key, value, residual = (rows @ part.T for part in layer.project.weight.chunk(4))
    width = query.shape[-1] // layer.heads
    heads = []
    for head in range(layer.heads):
        own = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bmd,bkd->bmk", query[..., own], key[..., own])
        heads.append(torch.softmax(scores, dim=-1) @ value[..., own])
    return torch.relu(torch.cat(heads, dim=-1) + residual)


@pytest.mark.parametrize(("width", "heads", "attention"), [(8, 2, 8), (6, 1, 10), (4, 4, 8), (8, 4, 8)])
def test_an_interacting_layer_and_its_gradients_are_those_of_the_definition(
    width: int, heads: int, attention: int
) -> None:
    torch.manual_seed(3)
    layer = InteractingLayer(width, BackboneConfig(heads=heads, attention_dim=attention)).double()
    rows = torch.randn(7, 5, width, dtype=torch.float64, requires_grad=True)
    seen = torch.randn(7, 5, attention, dtype=torch.float64)
    found = [
        (output, *torch.autograd.grad((output * seen).sum(), [rows, layer.project.weight]))
        for output in (layer(rows), by_definition(layer, rows))
    ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert float(found[0][1].abs().sum()) > 0


def test_the_merged_form_is_taken_where_its_products_are_no_wider() -> None:
    assert InteractingLayer(32, BackboneConfig(heads=2, attention_dim=32)).merges
    assert not InteractingLayer(32, BackboneConfig(heads=8, attention_dim=32)).merges


def test_the_gradient_of_field_attention_is_that_of_small_differences() -> None:
    torch.manual_seed(1)
    shapes, step = [(3, 4, 5), (5, 10), (10, 6), (5, 6)], 1e-6
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    seen = torch.randn(3, 4, 6, dtype=torch.float64)
    gradients = torch.autograd.grad((FieldAttention.apply(*inputs) * seen).sum(), inputs)
    for place, gradient in enumerate(gradients):
        # Not gradcheck, which goes backward through one graph many times.
        way = torch.randn_like(gradient)
        ends = [[x + sign * step * way if i == place else x for i, x in enumerate(inputs)] for sign in (1, -1)]
        ahead, behind = ((FieldAttention.apply(*end) * seen).sum() for end in ends)
        torch.testing.assert_close((ahead - behind) / (2 * step), (gradient * way).sum(), rtol=1e-6, atol=1e-8)


def test_a_second_backward_through_field_attention_is_refused_and_not_wrong() -> None:
    layer = InteractingLayer(8, BackboneConfig(heads=2, attention_dim=8))
    total = layer(torch.randn(3, 4, 8)).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 333, requires_grad=True)
    y = Dropout(rate)(x)
    dropped = float((y == 0).double().mean())
    assert dropped == pytest.approx(rate, abs=5 * (rate * (1 - rate) / x.numel()) ** 0.5)
    assert float(y.detach().max()) == pytest.approx(1 / (1 - rate), rel=1e-4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())
    # Neighbours share a draw of 64 bits: none of its four parts tells of the next.
    first, second = (y.detach().flatten()[place::4][:80_000] == 0 for place in (0, 1))
    both = float((first & second).double().mean())
    assert both == pytest.approx(rate**2, abs=5 * (rate**2 * (1 - rate**2) / 80_000) ** 0.5)


def test_dropout_repeats_by_seed_and_passes_all_outside_training() -> None:
    x = torch.ones(5, 7)
    masks = []
    for _ in range(2):
        torch.manual_seed(4)
        masks.append(Dropout(0.5)(x))
    assert torch.equal(*masks)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert isinstance(Dropout(0.1), nn.Dropout)
