"""The scorer on what the real pipeline has deployed: one request's items, folded and whole."""

import shutil
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from components.dataset.bundle import RANKER, Bundle, BundleError
from components.dataset.scoring import SIZES
from components.dataset.training_set import TrainingSet
from components.run import read_json, write_json
from serving.scorer import Scorer


@pytest.fixture(scope="module")
def stored(shop):
    (found,) = shop.glob("home/bentoml/models/tandem-shop/first")
    return found


@pytest.fixture(scope="module")
def rows(shop):
    (training_set,) = shop.glob("home/runs/first/artifacts/*/retrieve/training_set")
    return TrainingSet.open(training_set).table("test").to_pylist()


def whole_copy(stored, folder):
    """The bundle as a backbone that cannot be folded would have left it."""
    shutil.copytree(stored, folder)
    write_json(folder / "manifest.json", {**read_json(folder / "manifest.json"), "folded": False})
    return Bundle.open(folder)


def test_folded_and_whole_rank_alike(stored, rows, tmp_path):
    folded, whole = Scorer(Bundle.open(stored)), Scorer(whole_copy(stored, tmp_path / "whole"))
    assert folded.folded is not None and whole.folded is None
    items = {row["item_id"]: row for row in rows}
    keys = [*items, "nothing"]
    items["nothing"] = {}
    for request in (rows[0], rows[5], {"user_id": "nobody"}, {}):
        expected, strangers = whole.rank(request, keys, items)
        for folded.folds_from in (1, len(keys), len(keys) + 1):
            found, cold = folded.rank(request, keys, items)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert cold.tolist() == strangers.tolist() == [key == "nothing" for key in keys]
        assert len(np.unique(found)) > 10


def noted(calls, name, call, *given):
    calls.append(name)
    return call(*given)


def test_the_quicker_call_is_found_by_measuring(stored, rows):
    """Which one it is depends on the machine; that both give the same does not."""
    scorer = Scorer(Bundle.open(stored))
    assert 1 <= scorer.folds_from <= SIZES[-1] + 1
    calls = []
    for name in ("whole", "folded"):
        model = getattr(scorer, name)
        model.probabilities = partial(
            lambda made, said, *given: calls.append(said) or made(*given), model.probabilities, name
        )
    scorer.folds_from = 3
    items = {row["item_id"]: row for row in rows}
    for count in (1, 2, 3, 4):
        scorer.rank(rows[0], list(items)[:count], items)
    assert calls == ["whole", "whole", "folded", "folded"]


def test_the_parts_follow_an_items_features(stored, rows):
    scorer = Scorer(Bundle.open(stored))
    row = dict(rows[0])
    (before,), _ = scorer.rank(rows[1], [row["item_id"]], {row["item_id"]: row})
    changed = {**row, "colours": ["blue"] if "red" in row["colours"] else ["red"]}
    (after,), _ = scorer.rank(rows[1], [row["item_id"]], {row["item_id"]: changed})
    (again,), _ = scorer.rank(rows[1], [row["item_id"]], {row["item_id"]: row})
    assert abs(after - before) > 1e-6
    assert again == pytest.approx(before, abs=1e-7)


def test_a_folded_model_is_held_to_the_golden_rows_too(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "copy")
    model = onnx.load(tmp_path / "copy" / RANKER)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("folding.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(model, tmp_path / "copy" / RANKER)
    with pytest.raises(BundleError, match=r"ranker\.onnx changed"):
        Bundle.open(tmp_path / "copy")
    opened = Bundle.open(stored)
    with pytest.raises(BundleError, match="golden rows are off by"):
        Scorer(Bundle(tmp_path / "copy", opened.manifest, opened.spec, opened.vocabulary))
