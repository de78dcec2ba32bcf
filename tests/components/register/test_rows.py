"""A version's bundle with rows for more users and items: what is known stays as it is, to the last bit."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from components.dataset.bundle import ITEMS, Bundle
from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet
from components.models.config import BackboneConfig
from components.models.registry import build_backbone
from components.register import rows
from components.register.export import Source, torch_probabilities, write_bundle
from components.register.rows import _refuse_changed, write_larger
from components.register.settings import RunInfo
from components.registry.client import Registered
from components.registry.rows import refuse_without_maps
from components.run import read_json
from components.training.checkpoints import save_model
from components.training.growth import NewRows, grow
from serving.scorer import Scorer
from tests.components.dataset.test_embeddings import META, write_embeddings

BASE = Registered("tandem-films", "4", "made", "promoted", "m" * 32)
KEYS = {"user": ["new user"], "item": ["new item", "newer item"]}


@pytest.fixture(scope="module")
def grown(made, tmp_path_factory):
    """A folded model's bundle, and the model and its vocabulary with new rows."""
    folder, backbone = tmp_path_factory.mktemp("grown"), "autoint"
    torch.manual_seed(1)
    config = BackboneConfig(embedding_dim=4, hidden=(8, 4), layers=1)
    model = build_backbone(backbone, TrainingSet.open(made.training_set).for_model(False).layout, config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.uniform_(-0.5, 0.5)
    save_model(folder / "model", model, {})
    run = RunInfo(run_id="made", dataset="films", method="ctrl", backbone=backbone, seed=1)
    write_bundle(Source(made.training_set, made.evaluation, folder / "model", None, "p" * 64), folder / "bundle", run)
    bundle = Bundle.open(folder / "bundle")
    larger, vocabulary = model.eval(), bundle.vocabulary
    for side, keys in KEYS.items():
        larger, vocabulary = grow(larger, vocabulary, side, keys, torch.randn(len(keys), 4))
    return bundle, larger, vocabulary


def test_the_larger_bundle_is_sound_and_says_where_it_comes_from(grown, tmp_path):
    bundle, model, vocabulary = grown
    write_larger(bundle, BASE, model, vocabulary, {"user": 1, "item": 2}, None, tmp_path / "larger")
    found = Bundle.open(tmp_path / "larger")
    assert found.manifest["lineage"]["rows"] == {"from": "4", "new": {"user": 1, "item": 2}}
    assert found.manifest["lineage"]["vocabulary_digest"] == found.vocabulary.digest != bundle.vocabulary.digest
    assert found.manifest["proof"]["plm_free"]
    assert found.profiles() == bundle.profiles()
    same = {"name", "backbone", "arm", "run_id", "feature_service_hash", "spec_digest", "width", "folded"}
    assert {key: found.manifest[key] for key in same} == {key: bundle.manifest[key] for key in same}
    # The service takes it: digests, golden rows whole and folded.
    before, after = Scorer(bundle), Scorer(found)
    assert before.cold("item", ["new item", "nobody"]) == [True, True]
    assert after.cold("item", ["new item", "nobody"]) == [False, True]
    golden = bundle.golden()
    columns = {name: golden[name] for name in golden.column_names}
    np.testing.assert_array_equal(before.probabilities(columns), after.probabilities(columns))
    new = columns | {"item_id": ["new item"] * len(golden)}
    expected = torch_probabilities(model, vocabulary.encode(new))
    np.testing.assert_allclose(after.probabilities(new), expected, atol=1e-5)
    assert np.abs(before.probabilities(new) - expected).max() > 1e-4


def test_a_known_score_that_changes_is_refused(grown, tmp_path):
    bundle, *_ = grown
    shutil.copytree(bundle.path, tmp_path / "larger")
    compared = bundle, tmp_path / "larger", bundle.vocabulary.layout, True
    _refuse_changed(*compared)
    path = tmp_path / "larger" / ITEMS
    model = onnx.load(path)
    table = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    table.CopyFrom(numpy_helper.from_array(np.nextafter(numpy_helper.to_array(table), np.float32(9)), table.name))
    onnx.save(model, path)
    with pytest.raises(RuntimeError, match="scores what it knows otherwise"):
        _refuse_changed(*compared)


def test_ids_move_with_their_fields(grown):
    bundle, _, vocabulary = grown
    golden = bundle.golden()
    columns = {name: golden[name] for name in golden.column_names}
    ids = bundle.vocabulary.layout.columns_of(vocabulary.layout).taken(bundle.vocabulary.encode(columns))
    np.testing.assert_array_equal(ids, vocabulary.encode(columns))


def test_a_version_without_a_map_is_told_what_to_train(grown):
    bundle, *_ = grown
    with pytest.raises(UserError, match=r"has no map that makes rows of texts; train one: .*finetune.map_rows"):
        refuse_without_maps(BASE, bundle)


def test_texts_that_another_plm_encoded_are_refused(tmp_path):
    write_embeddings(
        tmp_path / "e", np.zeros((1, 3), np.float32), np.zeros(1, np.int32), {**META, "spec": {"name": "a"}}
    )
    maps = NewRows({}, {}, {"plm": {"name": "b"}, "plm_digest": "another"})
    with pytest.raises(UserError, match="version 4 has learnt its maps from texts that b"):
        rows._read(tmp_path, rows.EmbeddingSet.open(tmp_path / "e"), maps, BASE)
    assert read_json(tmp_path / "e" / "meta.json")["spec"] == {"name": "a"}
