import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from components.dataset.embeddings import EmbeddingSet, write_embeddings
from components.dataset.errors import UserError

META = {
    "plm": "tiny",
    "plm_digest": "abc",
    "pooling": "mean",
    "cache": {"hits": 1, "misses": 2, "tokens": 9, "seconds": 0.5, "seconds_saved": 0.25},
}
WHOLE = np.arange(15, dtype=np.float32).reshape(5, 3)


def shard(folder, number, ids, shards=2, **meta):
    path = folder / f"shard{number}"
    write_embeddings(path, WHOLE[list(ids)], np.array(ids, np.int32), {**META, **meta}, number, shards)
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
    opened = EmbeddingSet.open(shard(tmp_path, 0, range(5), shards=1))
    assert np.array_equal(opened.matrix(), WHOLE)


def test_an_empty_shard(tmp_path):
    opened = EmbeddingSet.open([shard(tmp_path, 0, range(5)), shard(tmp_path, 1, [])])
    assert np.array_equal(opened.matrix(), WHOLE)


def refused(paths):
    with pytest.raises(UserError, match="every shard of one encode run, each once") as error:
        EmbeddingSet.open(paths).matrix()
    return str(error.value)


@pytest.mark.parametrize("ids", [([0, 1], [4]), ([0, 1, 2], [2, 3, 4])])
def test_texts_that_are_missing_or_doubled_are_refused(tmp_path, ids):
    refused([shard(tmp_path, number, part) for number, part in enumerate(ids)])


def test_missing_and_doubled_shards_are_refused(tmp_path):
    """Also where the texts of the others count from 0 without a gap: the last shard, or an empty one."""
    first, last, empty = (shard(tmp_path, *part, shards=3) for part in ((0, [0, 1]), (1, [2, 3]), (2, [])))
    assert EmbeddingSet.open([empty, last, first]).matrix().shape == (4, 3)
    assert "shards 0, 2 of 3 with 2 of 2 texts" in refused([first, empty])
    assert "shards 0, 1 of 3 with 4 of 4 texts" in refused([first, last])
    refused([first, last, empty, empty])


def test_a_missing_file_of_a_shard_is_noticed(tmp_path):
    """The encode step writes several files per shard; the one that is gone may hold the highest text ids."""
    folder = shard(tmp_path, 0, range(5), shards=1)
    (whole,) = folder.glob("*.safetensors")
    tensors = load_file(whole)
    for number, rows in enumerate((slice(0, 3), slice(3, 5))):
        save_file(
            {name: value[rows].copy() for name, value in tensors.items()}, folder / f"shard-0-{number}.safetensors"
        )
    whole.unlink()
    assert np.array_equal(EmbeddingSet.open(folder).matrix(), WHOLE)
    (folder / "shard-0-1.safetensors").unlink()
    assert "with 3 of 5 texts" in refused(folder)
    (folder / "shard-0-0.safetensors").unlink()
    assert "with 0 of 5 texts" in refused(folder)


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
    with pytest.raises(UserError, match="embedding format 7 is not 2"):
        EmbeddingSet.open(tmp_path)


def test_shapes_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="do not fit 2 text ids"):
        write_embeddings(tmp_path / "e", WHOLE, np.zeros(2, np.int32), META)
