"""The champion's bundle on the candidate's rows: equal to its own arithmetic, or its refusal said in words."""

import numpy as np
import pyarrow as pa
import pytest

from components.evaluate.scoring import ScoreError, score_champion, sound
from tests.components.evaluate.logs import linear, spec_of, table, training_set, weights_of, write_bundle


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("champion") / "set")


def test_onnx_scores_equal_the_arrays_in_any_batches(data, tmp_path):
    weights = weights_of(data)
    bundle = write_bundle(tmp_path / "bundle", data, weights)
    expected = linear(weights)(data.arrays("test").ids)
    for batch_size in (7, 8192):
        found = score_champion(bundle, data.table("test"), batch_size)
        assert found.reason is None
        assert found.probabilities.dtype == np.float64
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.manifest["name"] == "films"


def test_a_champion_encodes_with_its_own_vocabulary(data, tmp_path):
    """An older champion, trained on fewer rows, has other ids for the same values."""
    older = training_set(tmp_path / "older", rows=table(seed=2, rows=900))
    assert older.vocabulary.digest != data.vocabulary.digest
    weights, test = weights_of(older), data.table("test")
    found = score_champion(write_bundle(tmp_path / "bundle", older, weights), test, 8192)
    ids = older.vocabulary.encode({name: test[name] for name in test.column_names})
    np.testing.assert_allclose(found.probabilities, linear(weights)(ids), atol=1e-6)


def test_a_champion_with_other_fields_is_said(data, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", data, weights_of(data))
    found = score_champion(bundle, data.table("test").drop_columns(["price", "device"]), 8192)
    assert found.probabilities is None
    assert "price" in found.reason and "device" in found.reason
    assert found.manifest["name"] == "films"


def test_a_field_that_became_a_list_is_said(data, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", data, weights_of(data))
    rows = table()[-300:]
    lists = pa.array([[age] for age in rows["age"].to_pylist()])
    found = score_champion(bundle, rows.set_column(rows.column_names.index("age"), "age", lists), 8192)
    assert found.probabilities is None
    assert found.reason.startswith("its features are not those of the rows")


def test_a_category_that_was_a_list_is_said(tmp_path):
    data = training_set(tmp_path / "set", spec_of())
    rows = table()[-300:]
    bundle = write_bundle(tmp_path / "bundle", data, weights_of(data))
    words = pa.array(["drama"] * 300)
    found = score_champion(bundle, rows.set_column(rows.column_names.index("genres"), "genres", words), 8192)
    assert found.probabilities is None
    assert found.reason.startswith("its features are not those of the rows")


def test_a_number_that_became_words_is_said(data, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", data, weights_of(data))
    rows = table()[-300:]
    words = pa.array(["cheap"] * 300)
    found = score_champion(bundle, rows.set_column(rows.column_names.index("price"), "price", words), 8192)
    assert found.probabilities is None


def test_a_changed_bundle_is_said(data, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", data, weights_of(data))
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b" ")
    found = score_champion(bundle, data.table("test"), 8192)
    assert found.probabilities is None
    assert "model.onnx changed" in found.reason
    assert score_champion(tmp_path / "nowhere", data.table("test"), 8192).probabilities is None


def test_a_champion_that_gives_nan_is_said(data, tmp_path):
    """Else no run could ever replace it."""
    weights = np.full_like(weights_of(data), np.nan)
    found = score_champion(write_bundle(tmp_path / "bundle", data, weights), data.table("test"), 8192)
    assert found.probabilities is None
    assert found.reason == "300 of 300 scores are NaN or no probabilities"
    assert found.manifest["name"] == "films"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_scores_that_are_no_probabilities_raise(bad):
    with pytest.raises(ScoreError, match="arm 'ctrl': 1 of 3 scores are NaN or no probabilities; its training"):
        sound("arm 'ctrl'", [0.1, bad, 0.9])
    assert sound("arm 'ctrl'", [0.0, 0.5, 1.0]).tolist() == [0.0, 0.5, 1.0]
