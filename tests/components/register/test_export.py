import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from components.dataset.bundle import ITEMS, RANKER, Bundle, BundleError
from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet, write_training_set
from components.register.export import (
    Source,
    check_folded,
    check_same,
    git_commit,
    onnx_probabilities,
    random_ids,
    torch_probabilities,
    write_bundle,
)
from components.register.settings import RunInfo
from components.run import read_json, write_json
from components.training.checkpoints import load_model
from tests.components.dataset.making import FIELDS, rows, spec_of

RUN = RunInfo(run_id="made", dataset="films", method="ctrl", backbone="wide_deep", seed=1)


def test_golden_rows_give_their_probabilities(bundle):
    opened = Bundle.open(bundle)
    golden = opened.golden()
    assert golden.num_rows == 64
    assert golden.column_names[:2] == ["user_id", "item_id"]
    ids = opened.encode({name: golden[name] for name in golden.column_names})
    expected = golden["probability"].to_numpy()
    assert np.abs(onnx_probabilities(opened.model_path, ids) - expected).max() < 1e-6
    assert len(np.unique(expected)) > 10


def test_the_manifest_tells_where_it_comes_from(bundle, made):
    manifest = Bundle.open(bundle).manifest
    data = TrainingSet.open(made.training_set)
    lineage = manifest["lineage"]
    assert (manifest["name"], manifest["backbone"], manifest["arm"], manifest["run_id"]) == (
        "films",
        "wide_deep",
        "ctrl",
        "made",
    )
    assert (lineage["dataset_digest"], lineage["prompt_hash"]) == ("d" * 64, "p" * 64)
    assert lineage["spec_digest"] == data.spec.digest
    assert lineage["vocabulary_digest"] == data.vocabulary.digest
    assert (lineage["feature_service"], lineage["feature_service_hash"]) == ("ctr_films", "f" * 64)
    assert manifest["signature"]["inputs"]["ids"] == {"type": "int64", "shape": [None, data.layout.width]}
    assert manifest["proof"]["plm_free"] is True
    assert {"degradation.json", "MLmodel"} <= set(manifest["files"])


def test_the_training_sets_spread_is_in_the_bundle(bundle, made):
    opened = Bundle.open(bundle)
    profiles, data = opened.profiles(), TrainingSet.open(made.training_set)
    assert set(profiles) == set(opened.vocabulary.columns) - {"event_timestamp", "history_timestamp"}
    train = data.table("train", list(profiles))
    assert all(profile.psi(train[name]) == pytest.approx(0, abs=1e-9) for name, profile in profiles.items())


def test_mlflow_can_load_the_bundle(bundle):
    import mlflow

    width = Bundle.open(bundle).vocabulary.layout.width
    model = mlflow.pyfunc.load_model(str(bundle))
    ids = random_ids(Bundle.open(bundle).vocabulary.layout, 5)
    assert model.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, width)
    found = model.predict({"ids": ids})["probability"]
    assert np.allclose(found, onnx_probabilities(bundle / "model.onnx", ids))


def test_a_changed_weight_is_not_the_trained_model(bundle, made, tmp_path):
    model = load_model(made.model)
    ids = random_ids(model.layout)
    expected = torch_probabilities(model, ids)
    check_same(bundle / "model.onnx", ids, expected)
    changed = onnx.load(bundle / "model.onnx")
    largest = max(changed.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = numpy_helper.to_array(largest).copy()
    values += 0.001
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(changed, tmp_path / "model.onnx")
    with pytest.raises(RuntimeError, match="The export is not faithful, and nothing was registered"):
        check_same(tmp_path / "model.onnx", ids, expected)
    with pytest.raises(RuntimeError, match="not faithful"):
        check_same(bundle / "model.onnx", ids, np.full_like(expected, np.nan))


def test_the_folded_model_is_in_the_bundle_and_proven(bundle, made):
    opened = Bundle.open(bundle)
    assert opened.folded == (bundle / ITEMS, bundle / RANKER)
    assert {ITEMS, RANKER} <= set(opened.manifest["files"])
    model = load_model(made.model)
    tables = model.embedding.table.weight.numel()
    held = {
        name: {tuple(tensor["shape"]) for tensor in found["tensors"]}
        for name, found in opened.manifest["proof"]["folded"].items()
    }
    rows = {
        name: sum(shape[0] for shape in shapes if len(shape) == 2 and shape[1] == 4) for name, shapes in held.items()
    }
    # Either file holds its own side's rows, and both together those of the whole model (and padding once more).
    assert 0 < rows[ITEMS] < tables // 4 and 0 < rows[RANKER] < tables // 4
    check_folded(bundle, model, random_ids(model.layout))


def test_a_folded_model_that_differs_is_not_registered(bundle, made):
    model = load_model(made.model)
    with torch.no_grad():
        model.head.bias += 0.01
    with pytest.raises(RuntimeError, match=r"ranker\.onnx.*The export is not faithful"):
        check_folded(bundle, model, random_ids(model.layout))


def test_a_bundle_without_a_file_that_it_says_is_folded_is_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = read_json(copy / "manifest.json")
    del manifest["files"][RANKER]
    write_json(copy / "manifest.json", manifest)
    with pytest.raises(BundleError, match=r"lacks ranker\.onnx"):
        Bundle.open(copy)


def test_a_bundle_that_was_tampered_with_is_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    Bundle.open(copy)
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx changed"):
        Bundle.open(copy)


def test_a_model_of_another_training_set_is_refused(made, tmp_path):
    parts = {"train": rows(30), "valid": rows(5), "test": rows(5)}
    write_training_set(tmp_path / "other", spec_of(fields=FIELDS[:-1]), parts, {})
    source = Source(tmp_path / "other", made.evaluation, made.model, None, None)
    with pytest.raises(UserError, match="trained on another training set"):
        write_bundle(source, tmp_path / "bundle", RUN)
    assert not (tmp_path / "bundle").exists()


def test_random_ids_fit_the_layout(made):
    layout = TrainingSet.open(made.training_set).layout
    ids = random_ids(layout, 1000)
    assert ids.shape == (1000, layout.width)
    for slots in layout.fields:
        mine = ids[:, slots.start : slots.stop]
        assert ((mine == 0) | ((mine >= slots.offset) & (mine < slots.offset + slots.size))).all()
        assert (mine[:, 0] > 0).all()
        assert set(np.unique(mine)) >= set(range(slots.offset, slots.offset + 3))
    genres = layout.field("genres")
    assert set((ids[:, genres.start : genres.stop] > 0).sum(1)) == {1, 2, 3}


def test_the_commit_may_be_given(monkeypatch):
    monkeypatch.setenv("TANDEM_GIT_COMMIT", "abc")
    assert git_commit() == "abc"
