"""Every backbone against its paper's formula, and the one interface that they share."""

import numpy as np
import pytest
import torch

from components.dataset.errors import UserError
from components.dataset.layout import RESERVED_CODES
from components.models.config import BackboneConfig
from components.models.registry import BACKBONES, build_backbone, name_of, reads_history
from tests.components.models import naive
from tests.components.models.making import MIXED, PLAIN, SMALL, ids_of, layout_of, model_of

VARIANTS = [(name, {}) for name in BACKBONES] + [
    ("dcnv2", {"cross_rank": 3}),
    ("dcnv2", {"cross_rank": 3, "cross_experts": 4}),
    ("pnn", {"product": "inner"}),
    ("pnn", {"product": "outer"}),
    ("fibinet", {"bilinear": "all"}),
    ("fibinet", {"bilinear": "interaction"}),
    ("autoint", {"heads": 1, "attention_dim": 3, "layers": 3}),
    ("autoint_history", {"text_rows": 5}),
    ("autoint_history", {"heads": 1, "layers": 1, "text_rows": 2}),
    ("srp4ctr", {"encoder_layers": 1, "queries": 0}),
    *(("srp4ctr", {"cross_attention": kind}) for kind in ("none", "sink", "full")),
    ("srp4ctr", {"cross_attention": "none", "queries": 0}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
@pytest.mark.parametrize("layout", [MIXED, PLAIN], ids=["mixed", "plain"])
def test_a_backbone_is_its_papers_formula(name, changes, layout):
    model = model_of(name, layout, SMALL.model_copy(update=changes))
    ids = ids_of(model.layout)
    with torch.no_grad():
        found = model.representation(ids).numpy()
        logits = model(ids).numpy()
    expected = np.stack([naive.representation(name, model, row) for row in ids.numpy()])
    assert found.shape == expected.shape == (len(ids), model.width)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    weight, bias = model.head.weight.detach().numpy()[0], model.head.bias.item()
    np.testing.assert_allclose(logits, found @ weight + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bst", "srp4ctr"])
def test_what_the_history_says_does_not_drown_the_fields_at_first(name):
    """A fresh model reads fields near zero beside normalised tokens: a batch norm would leave the fields no room."""
    torch.manual_seed(0)
    model, ids = build_backbone(name, MIXED, SMALL).eval(), ids_of(MIXED, rows=64)
    read = []
    model.deep.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    with torch.no_grad():
        model.representation(ids)
    fields = model.fields * SMALL.embedding_dim
    assert read[0][:, fields:].std() < 3 * read[0][:, :fields].std()


def test_a_fresh_deepfm_adds_the_factorisation_machine_without_weights():
    model = model_of("deepfm")
    model.reset_head()
    row = ids_of(MIXED)[:1]
    w = naive.weights_of(model)
    e = naive.rows_of(MIXED, row[0].numpy(), w["embedding.table.weight"])
    pairs = sum(e[i] @ e[j] for i in range(len(e)) for j in range(i))
    machine = naive.first_order(model, w, row[0].numpy(), "first_order").sum() + pairs
    deep = naive.mlp(w, e.ravel()) @ w["head.weight"][0, model.additive :]
    assert model(row).item() == pytest.approx(machine + deep, rel=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_learns_and_padding_stays_zero(name):
    torch.manual_seed(0)
    # Every parameter has a gradient where the rows differ from zero and no unit of the small layers is dead.
    model = model_of(name).train()
    torch.nn.functional.softplus(model(ids_of(MIXED, rows=256))).mean().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label
    table = model.embedding.table
    assert table.weight[0].abs().sum() == 0
    assert table.weight.grad[0].abs().sum() == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_a_fresh_head_changes_the_output_and_nothing_else(name):
    model = model_of(name)
    before = {label: value.clone() for label, value in model.state_dict().items()}
    model.reset_head()
    changed = {label for label, value in model.state_dict().items() if not torch.equal(value, before[label])}
    assert changed == {"head.weight", "head.bias"}


def test_reserved_codes_start_at_zero_and_values_do_not():
    model = build_backbone("autoint", MIXED, SMALL)
    for slots in MIXED.fields:
        rows = model.embedding.table.weight[slots.offset : slots.offset + slots.size]
        assert rows[list(RESERVED_CODES)].abs().sum() == 0
        assert rows[len(RESERVED_CODES) :].abs().min(1).values.gt(0).all()
        assert rows.std() < 0.05


def test_a_backbone_without_history_does_not_pay_for_it():
    model = model_of("autoint")
    assert model.layout == MIXED.without_history()
    assert model.embedding.table.num_embeddings == MIXED.fields[-1].offset + MIXED.fields[-1].size


def test_order_of_a_multi_fields_values_changes_nothing():
    model = model_of("autoint")
    ids = ids_of(model.layout)
    turned = ids.clone()
    turned[:, 1:4] = ids[:, 1:4].flip(1)
    torch.testing.assert_close(model(turned), model(ids))


def test_an_empty_multi_field_is_a_zero_row():
    model = model_of("autoint")
    ids = ids_of(MIXED)
    ids[:, 1:4] = 0
    assert model.embedding(ids)[:, 1].abs().sum() == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_ids_may_be_int32(name):
    model = model_of(name)
    ids = ids_of(MIXED)
    torch.testing.assert_close(model(ids.int()), model(ids))


def test_names_are_found_again():
    assert [name_of(model_of(name)) for name in BACKBONES] == list(BACKBONES)


def test_an_unknown_backbone_is_named():
    with pytest.raises(UserError, match="'autoit' is unknown; write one of: autoint, autoint_history, bst"):
        build_backbone("autoit", MIXED, SMALL)


@pytest.mark.parametrize("name", [name for name in BACKBONES if reads_history(name)])
def test_a_backbone_with_history_needs_one(name):
    with pytest.raises(UserError, match="reads the user's history of items, but the data set has none; add 'history'"):
        build_backbone(name, MIXED.without_history(), SMALL)


@pytest.mark.parametrize("name", [name for name in BACKBONES if reads_history(name)])
def test_rows_do_not_see_each_other_and_an_empty_slot_is_nothing(name):
    """What stands in an empty slot's other attributes changes nothing, nor does the rest of the batch."""
    model, ids = model_of(name), ids_of(MIXED)
    with torch.no_grad():
        whole = model(ids)
        dirty = ids.clone()
        label = MIXED.history[1]
        block = dirty[:, label.start : label.stop]
        block[block == 0] = label.offset + 1
        torch.testing.assert_close(model(dirty), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.cat([model(row) for row in ids.split(1)]), whole, rtol=1e-5, atol=1e-5)
        changed = ids.clone()
        changed[:, label.stop - 1] = label.offset + 4
        differs = (model(changed) - whole).abs() > 1e-6
    assert differs[ids[:, MIXED.history[0].stop - 1] != 0].any(), "the label of the last event counts"


@pytest.mark.parametrize("name", ["autoint_history", "srp4ctr"])
def test_heads_that_do_not_divide_the_rows_are_refused(name):
    with pytest.raises(UserError, match=r"model\.heads=4 must divide model\.embedding_dim=6; change one of them"):
        build_backbone(name, MIXED, SMALL.model_copy(update={"heads": 4}))


def test_pairs_need_two_fields():
    with pytest.raises(UserError, match="fibinet"):
        build_backbone("fibinet", layout_of(1), SMALL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads=3 must divide attention_dim=32"),
        ({"cross_experts": 4}, "set cross_rank"),
        ({"hidden": (8, 0)}, "whole numbers from 1"),
        ({"hidden": ()}, "hidden"),
        ({"depth": 3}, "depth"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**changes)


def test_large_tables_have_sparse_gradients():
    model = build_backbone("deepfm", layout_of(1, 1, sizes=700_000), SMALL)
    assert model.embedding.table.sparse
    assert not model.first_order.table.sparse
    assert not build_backbone("deepfm", MIXED, SMALL).embedding.table.sparse
