"""The ONNX file against the model that it was made from."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from components.dataset.errors import UserError
from components.models import export
from components.models.export import export_onnx
from components.models.registry import BACKBONES
from tests.components.models.making import SMALL, ids_of, layout_of, model_of

VARIANTS = [(name, {}) for name in BACKBONES] + [("dcnv2", {"cross_rank": 3, "cross_experts": 2})]


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_onnx_equals_eager_at_any_batch_size(name, changes, tmp_path):
    model = model_of(name, config=SMALL.model_copy(update=changes))
    export_onnx(model, tmp_path / "model.onnx")
    session = session_of(tmp_path / "model.onnx")
    for rows in (1, 2, 37):
        ids = ids_of(model.layout, rows, seed=rows)
        (found,) = session.run(["probability"], {"ids": ids.numpy()})
        with torch.no_grad():
            expected = torch.sigmoid(model(ids)).numpy()
        assert found.dtype == np.float32 and found.shape == (rows,)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_layout_without_multi_fields_exports_too(tmp_path):
    layout = layout_of(1, 1, 1)
    model = model_of("autoint", layout)
    export_onnx(model, tmp_path / "model.onnx")
    (found,) = session_of(tmp_path / "model.onnx").run(None, {"ids": ids_of(layout).numpy()})
    np.testing.assert_allclose(found, torch.sigmoid(model(ids_of(layout))).detach().numpy(), atol=1e-5)


def test_one_file_that_says_nothing_of_where_it_was_made(tmp_path):
    export_onnx(model_of("autoint"), tmp_path / "a.onnx")
    export_onnx(model_of("autoint"), tmp_path / "b.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert b".py" not in content
    model = onnx.load(tmp_path / "a.onnx")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert model.opset_import[0].version >= 17


def test_the_model_stays_as_it_was(tmp_path):
    model = model_of("autoint").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_beyond_one_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="min_count"):
        export_onnx(model_of("autoint"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
