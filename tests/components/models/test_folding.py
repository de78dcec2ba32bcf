"""A model cut into a request's and an item's part, against the model as a whole."""

import numpy as np
import onnxruntime
import pytest
import torch

from components.dataset.layout import CANDIDATE, REQUEST
from components.models.autoint import InteractingLayer, MergedLayer
from components.models.config import BackboneConfig
from components.models.export import export_folded, without_batch_norm
from components.models.registry import BACKBONES, reads_history
from tests.components.models.making import MIXED, SIDED, SMALL, ids_of, layout_of, model_of, sided

FOLDED = sorted({name for name in BACKBONES if not reads_history(name)} - {"fibinet", "xdeepfm"})
PLAIN = sided(("user", 1), ("context", 1), ("item", 1), ("item", 1))
VARIANTS = [(name, {}) for name in FOLDED] + [
    ("autoint", {"layers": 1}),
    ("autoint", {"layers": 3, "heads": 1}),
    ("autoint", {"heads": 4, "attention_dim": 8}),
    ("dcn", {"cross_layers": 1}),
    ("dcnv2", {"cross_layers": 1}),
    ("dcnv2", {"cross_layers": 2}),
    ("dcnv2", {"cross_layers": 5}),
    ("pnn", {"product": "inner"}),
    ("pnn", {"product": "outer"}),
    ("wide_deep", {"batch_norm": False}),
]


def one_request(layout, rows, seed=3):
    """Rows whose user and context are those of the first one."""
    ids = ids_of(layout, rows, seed)
    for slots in (*layout.fields, *layout.history):
        if slots.side in REQUEST:
            ids[:, slots.start : slots.stop] = ids[:1, slots.start : slots.stop]
    return ids


def side_ids(layout, ids, sides):
    return torch.from_numpy(layout.ids_of(sides, ids.numpy()))


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
@pytest.mark.parametrize("layout", [SIDED, PLAIN], ids=["interleaved", "plain"])
def test_folded_equals_whole(name, changes, layout):
    model = model_of(name, layout, SMALL.model_copy(update=changes))
    folding = without_batch_norm(model).fold().eval()
    for rows in (1, 2, 23):
        ids = one_request(layout, rows, seed=rows)
        with torch.no_grad():
            expected = model(ids)
            parts = folding.item(side_ids(layout, ids, CANDIDATE))
            found = folding(side_ids(layout, ids[:1], REQUEST), *parts)
        assert found.shape == (rows,)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FOLDED)
def test_the_files_equal_the_model_and_parts_are_an_items_own(name, tmp_path):
    model = model_of(name, SIDED)
    items, ranker = tmp_path / "items.onnx", tmp_path / "ranker.onnx"
    assert export_folded(model, items, ranker)
    first, second = (onnxruntime.InferenceSession(str(path)) for path in (items, ranker))
    names = [output.name for output in first.get_outputs()]
    known = {}
    for seed, rows in enumerate((1, 37, 37)):
        ids = one_request(SIDED, rows, seed)
        parts = first.run(names, {"ids": SIDED.ids_of(CANDIDATE, ids.numpy())})
        for row, each in zip(ids.numpy(), zip(*parts, strict=True), strict=True):
            key = tuple(SIDED.ids_of(CANDIDATE, row[None])[0])
            for part, before in zip(each, known.setdefault(key, each), strict=True):
                np.testing.assert_allclose(part, before, rtol=1e-5, atol=1e-6)
        request = SIDED.ids_of(REQUEST, ids[:1].numpy())
        (found,) = second.run(["probability"], {"ids": request, **dict(zip(names, parts, strict=True))})
        with torch.no_grad():
            expected = torch.sigmoid(model(ids)).numpy()
        assert found.dtype == np.float32 and found.shape == (rows,)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layout", "changes"),
    [
        ("fibinet", SIDED, {}),
        ("xdeepfm", SIDED, {}),
        ("dcnv2", SIDED, {"cross_rank": 2}),
        ("din", MIXED, {}),
        ("autoint", sided(("user", 1), ("user", 3)), {}),
        ("autoint", sided(("item", 1), ("item", 1)), {}),
    ],
    ids=["fibinet", "xdeepfm", "experts", "history", "users only", "items only"],
)
def test_what_cannot_be_folded_is_left_whole(name, layout, changes, tmp_path):
    model = model_of(name, layout, SMALL.model_copy(update=changes))
    assert not export_folded(model, tmp_path / "items.onnx", tmp_path / "ranker.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("heads", "merged"), [(1, True), (2, True), (4, False)])
def test_an_interacting_layer_is_served_in_the_cheaper_form(heads, merged):
    torch.manual_seed(0)
    layer = InteractingLayer(12, BackboneConfig(heads=heads, attention_dim=12))
    served = layer.served()
    assert isinstance(served, MergedLayer) == merged
    rows = torch.randn(5, 3, 12)
    torch.testing.assert_close(served(rows), layer(rows), rtol=1e-4, atol=1e-5)


def test_large_scores_do_not_overflow():
    model = model_of("autoint", SIDED)
    with torch.no_grad():
        model.attention[0].project.weight.mul_(30)
    ids = one_request(SIDED, 23)
    with torch.no_grad():
        assert MergedLayer(model.attention[0]).scores(model.embedding(ids)).abs().max() > 200
        folding = without_batch_norm(model).fold()
        parts = folding.item(side_ids(SIDED, ids, CANDIDATE))
        found = torch.sigmoid(folding(side_ids(SIDED, ids[:1], REQUEST), *parts))
        torch.testing.assert_close(found, torch.sigmoid(model(ids)), rtol=1e-3, atol=1e-5)


SEQUENCES = [
    ("srp4ctr", {}),
    ("srp4ctr", {"queries": 0}),
    ("srp4ctr", {"cross_attention": "none"}),
    ("srp4ctr", {"cross_attention": "sink"}),
    ("srp4ctr", {"encoder_layers": 3}),
    ("autoint_history", {}),
    ("autoint_history", {"text_rows": 5, "heads": 1}),
    ("autoint_history", {"text_rows": 5, "layers": 1}),
]


@pytest.mark.parametrize(("name", "changes"), SEQUENCES)
def test_a_sequence_is_read_once_for_all_candidates(name, changes):
    """Folded logits equal unfolded ones within 1e-6, with as many events as fit, some, and none."""
    layout = layout_of(1, 3, 1, 1, 2, history=4)
    # In double precision, so that what differs is the computation and not its rounding.
    model = without_batch_norm(model_of(name, layout, SMALL.model_copy(update=changes)))
    folding, model = model.fold().eval().double(), model.double()
    for rows, seed in ((1, 1), (2, 2), (23, 3)):
        for empty in (0, 2, 4):
            ids = one_request(layout, rows, seed)
            for slots in layout.history:
                ids[:, slots.start : slots.stop] = slots.offset + 3
                ids[:, slots.start : slots.start + empty] = 0
            with torch.no_grad():
                parts = folding.item(side_ids(layout, ids, CANDIDATE))
                found = folding(side_ids(layout, ids[:1], REQUEST), *parts)
                torch.testing.assert_close(found, model(ids), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cross", ["uni", "none"])
def test_evaluation_encodes_a_sequence_once_for_the_rows_that_share_it(cross):
    layout = layout_of(1, 3, 1, 1, 2, history=4)
    model = model_of("srp4ctr", layout, SMALL.model_copy(update={"cross_attention": cross})).double()
    ids = ids_of(layout, 15)
    for slots in layout.history:  # of five requests in turn
        ids[:, slots.start : slots.stop] = ids[:5, slots.start : slots.stop].repeat(3, 1)
    encoded = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    with torch.no_grad():
        found = model.eval()(ids)
        alone = torch.cat([model(row) for row in ids.split(1)])
        model.train()(ids)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)
    assert encoded == [5, *[1] * 15, 15]


@pytest.mark.parametrize(("name", "changes"), [("srp4ctr", {}), ("autoint_history", {"text_rows": 5})])
def test_the_files_of_a_sequence_model_equal_it(name, changes, tmp_path):
    layout = layout_of(1, 3, 1, 1, 2, history=4)
    model = model_of(name, layout, SMALL.model_copy(update=changes))
    assert export_folded(model, tmp_path / "items.onnx", tmp_path / "ranker.onnx")
    first, second = (onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("items", "ranker"))
    names = [output.name for output in first.get_outputs()]
    for rows in (1, 2, 37):
        ids = one_request(layout, rows, seed=rows)
        parts = first.run(names, {"ids": layout.ids_of(CANDIDATE, ids.numpy())})
        request = layout.ids_of(REQUEST, ids[:1].numpy())
        (found,) = second.run(["probability"], {"ids": request, **dict(zip(names, parts, strict=True))})
        with torch.no_grad():
            np.testing.assert_allclose(found, torch.sigmoid(model(ids)).numpy(), atol=1e-6)
