import bz2
import gzip
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.dataset import files
from components.dataset.errors import UserError
from components.dataset.files import columns_of, format_of, read_source
from components.dataset.spec import Source


def source(path, **changes):
    return Source(path=str(path), **changes)


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return source(path)


def test_csv_cells_stay_as_they_are_written(tmp_path):
    table = read_source(written(tmp_path / "a.csv", '\ufeffid,code,note\n007,1.50,"a\nb, ""c"""\n8,,é\n'))
    assert table.to_pydict() == {"id": ["007", "8"], "code": ["1.50", None], "note": ['a\nb, "c"', "é"]}


def test_csv_whole_numbers_that_a_data_frame_wrote_as_floats(tmp_path):
    table = read_source(written(tmp_path / "a.csv", "id,version,score\n1.0,1.0,1.0\n,1.1,\n-20.0,2.0,x.0\n"))
    assert table["id"].to_pylist() == ["1", None, "-20"]
    assert table["version"].to_pylist() == ["1.0", "1.1", "2.0"]
    assert table["score"].to_pylist() == ["1.0", None, "x.0"]


def test_csv_delimiters(tmp_path):
    text = "a;b\n1;2,5\n"
    (tmp_path / "a.csv").write_text(text)
    assert read_source(source(tmp_path / "a.csv", delimiter=";")).to_pydict() == {"a": ["1"], "b": ["2,5"]}
    assert read_source(written(tmp_path / "a.tsv", "a\tb\n1\t2\n"), ["b"]).to_pydict() == {"b": ["2"]}


def test_packed_files(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("a,b\n1,2\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"a": 1}\n')
    assert read_source(source(tmp_path / "a.csv.gz")).to_pydict() == {"a": ["1"], "b": ["2"]}
    assert read_source(source(tmp_path / "a.jsonl.gz")).to_pydict() == {"a": [1]}


@pytest.mark.parametrize(("name", "opened"), [("a.csv", open), ("a.csv.gz", gzip.open), ("a.csv.bz2", bz2.open)])
def test_arrow_reads_a_local_file_without_python(tmp_path, name, opened):
    """Whose threads may outlive the interpreter, which then aborts; bzip2 is unpacked in Python."""
    with opened(tmp_path / name, "wb") as file:
        file.write(b"a,b\n1,2\n")
    for path in (tmp_path / name, f"file://{tmp_path / name}"):
        with files._streamed(source(path)) as stream:
            assert isinstance(stream, pa.NativeFile) == (opened is not bz2.open)
            assert stream.read() == b"a,b\n1,2\n"
        assert read_source(source(path)).to_pydict() == {"a": ["1"], "b": ["2"]}


def test_any_path_of_fsspec():
    with fsspec.open("memory://tandem/a.csv", "w") as file:
        file.write("a\n1\n")
    with fsspec.open("memory://tandem/a.parquet", "wb") as file:
        pq.write_table(pa.table({"a": [1, 2], "b": [3, 4]}), file)
    assert read_source(source("memory://tandem/a.csv")).to_pydict() == {"a": ["1"]}
    assert read_source(source("memory://tandem/a.parquet"), ["b"]).to_pydict() == {"b": [3, 4]}


def test_parquet_folders(tmp_path):
    for day in ("2024-01-01", "2024-01-02"):
        (tmp_path / "log.parquet" / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"a": [day[-1]]}), tmp_path / "log.parquet" / f"day={day}" / "part.parquet")
    table = read_source(source(tmp_path / "log.parquet"), ["a", "day"]).sort_by("a")
    assert table["a"].to_pylist() == ["1", "2"]
    assert [str(day) for day in table["day"].to_pylist()] == ["2024-01-01", "2024-01-02"]


def test_a_parquet_file_in_a_folder_that_looks_partitioned(tmp_path):
    (tmp_path / "run=7").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "run=7" / "a.parquet")
    assert columns_of(source(tmp_path / "run=7" / "a.parquet")) == ["a"]


def test_json_lines_keep_words_that_look_like_moments(tmp_path):
    rows = [{"d": "2024-05-31", "l": ["2024-05-31"], "n": 1}, {"d": "2024-06-01", "l": [], "n": None, "late": "x"}]
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    table = read_source(written(tmp_path / "a.jsonl", text), ["d", "l", "n", "late"])
    assert table["d"].to_pylist() == ["2024-05-31", "2024-06-01"]
    assert table["l"].to_pylist() == [["2024-05-31"], []]
    assert table["n"].to_pylist() == [1, None]
    assert table["late"].to_pylist() == [None, "x"]


def test_a_json_column_that_comes_late_is_found_when_asked_for(tmp_path):
    text = '{"a": 1}\n' * 1500 + '{"a": 1, "late": 2}\n'
    given = written(tmp_path / "a.jsonl", text)
    assert columns_of(given) == ["a"]
    assert columns_of(given, ["late"]) == ["a", "late"]
    assert read_source(given, ["late"])["late"].to_pylist()[-1] == 2


def test_rows_and_types_that_go_over_the_end_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 1000)
    late = range(500)
    rows = [{"n": i, "s": None, "l": None, "r": None} for i in late]
    rows += [{"n": i + 0.5, "s": "2024-05-31", "l": ["2024-05-31"], "r": {"a": 1}} for i in late]
    for columns in (["n"], ["n", "s"], ["n", "s", "l"], ["n", "s", "l", "r"]):
        text = "\n".join(json.dumps({name: row[name] for name in columns}) for row in rows)
        table = read_source(written(tmp_path / "a.jsonl", text), [name for name in columns if name != "r"])
        assert table.to_pylist() == [{name: row[name] for name in columns if name != "r"} for row in rows]
    given = written(tmp_path / "a.csv", "a,b\n" + "".join(f'{i},"x\ny, {i}"\n' for i in late))
    assert read_source(given).to_pydict() == {"a": [str(i) for i in late], "b": [f"x\ny, {i}" for i in late]}


def fails(given, message, columns=None):
    with pytest.raises(UserError) as caught:
        read_source(given, columns)
    assert str(caught.value).startswith(given.path)
    assert message in str(caught.value)


def test_missing_files(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        fails(source(tmp_path / name), "no such file; correct 'path' under 'sources'")
    fails(source("nosuch://bucket/a.csv"), "cannot be opened: ValueError: Protocol not known")
    fails(source("nosuch://bucket/a.parquet"), "cannot be opened: ValueError: Protocol not known")


def test_a_folder_that_is_no_parquet(tmp_path):
    (tmp_path / "a.csv").mkdir()
    fails(source(tmp_path / "a.csv"), "is a folder; only Parquet may be one")


def test_unknown_ending(tmp_path):
    fails(source(tmp_path / "a.xlsx"), "its ending names no format; write 'format: csv', 'parquet' or 'jsonl'")
    fails(source(tmp_path / "data"), "its ending names no format")
    assert format_of(source("data", format="csv")) == "csv"
    assert format_of(source("a.CSV")) == "csv"


def test_missing_columns_are_named_with_those_that_are_there(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    message = "no column 'x', 'y'; the columns are a, b"
    fails(written(tmp_path / "a.csv", "a,b\n1,2\n"), message, ["a", "x", "y"])
    fails(written(tmp_path / "a.jsonl", '{"a": 1}\n{"b": 2}\n'), message, ["a", "x", "y"])
    fails(source(tmp_path / "a.parquet"), message, ["a", "x", "y"])


def test_empty_files(tmp_path):
    fails(written(tmp_path / "a.csv", ""), "is empty; its first line must name the columns")
    fails(written(tmp_path / "a.jsonl", "\n"), "is empty; write one JSON object per line")
    fails(written(tmp_path / "a.parquet", ""), "is no Parquet file")


def test_files_that_are_not_utf8(tmp_path):
    for name, data in (
        ("a.csv", b"a\nok\n\xe9\n"),
        ("b.csv", b"caf\xe9\nok\n"),
        ("a.jsonl", b'{"a": "ok"}\n' * 1001 + b'{"a": "\xe9"}\n'),
    ):
        (tmp_path / name).write_bytes(data)
        fails(source(tmp_path / name), "is not UTF-8; convert it")
    (tmp_path / "b.jsonl").write_bytes(b'{"a": "\xe9"}\n')
    fails(source(tmp_path / "b.jsonl"), "is not UTF-8; convert it")


def test_rows_of_the_wrong_length(tmp_path):
    fails(written(tmp_path / "a.csv", "a,b\n1,2\n3\n"), "cannot be read: CSV parse error: Expected 2 columns, got 1: 3")


def test_a_column_named_twice(tmp_path):
    fails(written(tmp_path / "a.csv", "a,b,a\n1,2,3\n"), "column a stands there twice; rename one of them", ["a"])
    assert read_source(source(tmp_path / "a.csv"), ["b"]).to_pydict() == {"b": ["2"]}


def test_json_that_is_none(tmp_path):
    fails(written(tmp_path / "a.jsonl", '{"a": 1}\n[1]\n'), "line 2 is no JSON object; write one object per line")
    fails(written(tmp_path / "b.jsonl", '[\n{"a": 1}\n]\n'), "line 1 is no JSON object")
    fails(written(tmp_path / "c.jsonl", '{"a": 1}\n' * 1000 + "{\n"), "cannot be read: JSON parse error")


def test_json_columns_of_two_types(tmp_path):
    given = written(tmp_path / "a.jsonl", '{"a": 1}\n{"a": "x"}\n')
    fails(given, "column 'a' holds values of type number and string; write all of them as strings")
