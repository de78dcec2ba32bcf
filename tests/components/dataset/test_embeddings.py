import numpy as np
import pytest

from components.dataset.embeddings import EmbeddingSet, write_embeddings
from components.dataset.errors import UserError

META = {
    "plm": "tiny",
    "plm_digest": "abc",
    "pooling": "mean",
    "cache": {"hits": 1, "misses": 2, "tokens": 9, "seconds": 0.5, "seconds_saved": 0.25},
}
WHOLE = np.arange(15, dtype=np.float32).reshape(5, 3)


def shard(folder, number, ids, **meta):
    path = folder / f"shard{number}"
    write_embeddings(path, WHOLE[list(ids)], np.array(ids, np.int32), {**META, **meta}, number)
    return path


def test_shards_from_several_folders_are_put_in_order(tmp_path):
    paths = [shard(tmp_path, 1, [1, 3]), shard(tmp_path, 0, [4, 0, 2])]
    opened = EmbeddingSet.open(paths)
    assert np.array_equal(opened.matrix(), WHOLE)
    assert opened.matrix().dtype == np.float32
    spent = {"hits": 2, "misses": 4, "tokens": 18, "seconds": 1.0, "seconds_saved": 0.5}
    assert opened.meta["cache"] == {**spent, "gpu_seconds": 0, "gpu_seconds_saved": 0}
    assert (opened.meta["dim"], opened.meta["plm_digest"]) == (3, "abc")


def test_one_folder(tmp_path):
    opened = EmbeddingSet.open(shard(tmp_path, 0, range(5)))
    assert np.array_equal(opened.matrix(), WHOLE)


def test_an_empty_shard(tmp_path):
    opened = EmbeddingSet.open([shard(tmp_path, 0, range(5)), shard(tmp_path, 1, [])])
    assert np.array_equal(opened.matrix(), WHOLE)


@pytest.mark.parametrize("ids", [([0, 1], [4]), ([0, 1, 2], [2, 3, 4])])
def test_missing_and_doubled_shards_are_refused(tmp_path, ids):
    paths = [shard(tmp_path, number, part) for number, part in enumerate(ids)]
    with pytest.raises(UserError, match="every shard of one encode run, each once"):
        EmbeddingSet.open(paths).matrix()


def test_shards_of_different_models_are_refused(tmp_path):
    paths = [shard(tmp_path, 0, [0]), shard(tmp_path, 1, [1], plm_digest="other")]
    with pytest.raises(UserError, match="plm_digest differs"):
        EmbeddingSet.open(paths)


def test_no_embeddings_and_another_format(tmp_path):
    with pytest.raises(UserError, match="no embeddings; give the folders that the encode step wrote"):
        EmbeddingSet.open(tmp_path)
    with pytest.raises(UserError, match="no embeddings given"):
        EmbeddingSet.open([])
    (tmp_path / "meta.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="embedding format 7 is not 1"):
        EmbeddingSet.open(tmp_path)


def test_shapes_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="do not fit 2 text ids"):
        write_embeddings(tmp_path / "e", WHOLE, np.zeros(2, np.int32), META)
