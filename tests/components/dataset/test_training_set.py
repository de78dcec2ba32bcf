import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.dataset.errors import UserError
from components.dataset.training_set import PARTS, TrainingSet, write_training_set
from tests.components.dataset.making import rows, spec_of


def parts():
    table = rows(12)
    return {"train": table.slice(0, 7), "valid": table.slice(7, 2), "test": table.slice(9, 3)}


def test_written_and_opened_again(tmp_path):
    write_training_set(tmp_path / "set", spec_of(), parts(), {"feature_service": "ctr_films"})
    opened = TrainingSet.open(tmp_path / "set")
    assert opened.spec.digest == spec_of().digest == opened.meta["spec_digest"]
    assert opened.meta["rows"] == {"train": 7, "valid": 2, "test": 3}
    assert opened.meta["feature_service"] == "ctr_films"
    assert opened.meta["vocabulary_digest"] == opened.vocabulary.digest
    for name in PARTS:
        assert opened.table(name).equals(parts()[name])
    assert opened.table("test", ["title"]).column_names == ["title"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_parts_may_be_files_and_folders_of_files_in_the_order_of_their_names(tmp_path):
    """As several tasks write them, each with its own name for what a list holds."""
    made = parts()
    for name, table in made.items():
        strings = pa.list_(pa.field("element", pa.string()))
        kinds = [strings if pa.types.is_list(kind) else kind for kind in table.schema.types]
        made[name] = table.cast(pa.schema(list(zip(table.column_names, kinds, strict=True))))
    folder = tmp_path / "written"
    folder.mkdir()
    for number in (1, 0):
        pq.write_table(made["train"].slice(4 * number, 4), folder / f"part-{number}.parquet")
    (folder / "_SUCCESS").touch()
    pq.write_table(made["valid"], tmp_path / "valid.parquet")
    given = {"train": folder, "valid": tmp_path / "valid.parquet", "test": made["test"]}
    write_training_set(tmp_path / "set", spec_of(), given, {})
    opened = TrainingSet.open(tmp_path / "set")
    assert opened.meta["rows"] == {"train": 7, "valid": 2, "test": 3}
    assert not folder.exists() and not (tmp_path / "valid.parquet").exists()
    write_training_set(tmp_path / "again", spec_of(), parts(), {})
    again = TrainingSet.open(tmp_path / "again")
    assert opened.vocabulary == again.vocabulary
    for name in PARTS:
        assert opened.columns(name) == parts()[name].column_names
        assert opened.table(name).equals(parts()[name])
        batches = list(opened.batches(name, ["title", "genres"], 3))
        assert max(batch.num_rows for batch in batches) <= 3
        assert pa.concat_tables(batches).equals(parts()[name].select(["title", "genres"]))


def test_a_second_writing_replaces_the_first(tmp_path):
    write_training_set(tmp_path / "set", spec_of(), parts(), {"run": 1})
    write_training_set(tmp_path / "set", spec_of(), parts(), {"run": 2})
    assert TrainingSet.open(tmp_path / "set").meta["run"] == 2


def test_the_vocabulary_knows_the_train_part_only(tmp_path):
    data = parts()
    place = data["test"].column_names.index("job")
    data["test"] = data["test"].set_column(place, "job", pa.array(["late"] * 3))
    write_training_set(tmp_path / "set", spec_of(), data, {})
    assert "late" not in TrainingSet.open(tmp_path / "set").vocabulary.field("job").values


def test_arrays(tmp_path):
    data = parts()
    place = data["test"].column_names.index("user_id")
    data["test"] = data["test"].set_column(place, "user_id", pa.array(["1", "newcomer", "2"]))
    write_training_set(tmp_path / "set", spec_of(), data, {})
    opened = TrainingSet.open(tmp_path / "set")
    train, test = opened.arrays("train"), opened.arrays("test")
    assert test.ids.dtype == np.int32 and test.ids.shape == (3, opened.layout.width)
    assert (
        test.ids.tolist() == opened.vocabulary.encode({n: data["test"][n] for n in data["test"].column_names}).tolist()
    )
    assert test.labels.dtype == np.float32 and test.labels.tolist() == [1.0, 0.0, 1.0]
    assert train.user_codes.dtype == np.int64 and train.user_counts.dtype == np.int32
    assert test.user_codes[0] == train.user_codes[1] and test.user_codes[2] == train.user_codes[2]
    assert test.user_codes[1] not in train.user_codes
    assert test.user_counts.tolist() == [2, 0, 2]
    for arrays, name in ((train, "train"), (test, "test")):
        items = data[name]["item_id"].to_pylist()
        assert arrays.item_counts.tolist() == [data["train"]["item_id"].to_pylist().count(item) for item in items]


def test_an_empty_part_is_named(tmp_path):
    data = {**parts(), "test": rows(0)}
    with pytest.raises(UserError, match="no rows in the part test"):
        write_training_set(tmp_path / "set", spec_of(), data, {})
    assert not (tmp_path / "set").exists()


def test_no_training_set_and_another_format(tmp_path):
    with pytest.raises(UserError, match="no training set; give the folder that the retrieve step wrote"):
        TrainingSet.open(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="training set format 7 is not 1"):
        TrainingSet.open(tmp_path)
