"""MovieLens from ZIPs of our own in the published formats, and from the real one where it is at hand."""

import os
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

from components.dataset import movielens
from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.movielens import import_movielens
from components.dataset.sources import validated_tables

ML_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n2::1193::1::978302268\n2::3::4::978301968\n",
    "users.dat": "1::F::1::10::02460\n2::M::56::16::98107-2117\n",
    "movies.dat": '3::Grumpier Old Men (1995)::Comedy|Romance\n661::James, and "Peach": a tale (1996)::Animation\n'
    "1193::Misérables, Les (1995)::Drama|Musical\n",
}
FLAGS_OF_TOY_STORY = "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0"
ML_100K = {
    "u.data": "196\t1\t3\t881250949\n186\t1\t5\t891717742\n196\t267\t1\t881250950\n",
    "u.user": "186|39|F|executive|00000\n196|49|M|writer|55105\n",
    "u.item": f"1|Toy Story (1995) |01-Jan-1995||http://us.imdb.com/M/title-exact|{FLAGS_OF_TOY_STORY}\n"
    "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
}
CONTENT = {"ml-1m": ML_1M, "ml-100k": ML_100K}


def pack(path, files, inner="ml-1m/"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(inner + name, content.encode("latin-1"))
    return path


@pytest.fixture
def archive(tmp_path):
    return pack(tmp_path / "ml-1m.zip", ML_1M)


def read(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_ml_1m(archive, tmp_path):
    folder = import_movielens("ml-1m", archive, tmp_path / "out")
    assert read(folder, "ratings")[0] == {"user_id": "1", "movie_id": "1193", "rating": 5, "timestamp": 978300760}
    assert len(read(folder, "ratings")) == 4
    assert read(folder, "users")[0] == {"user_id": "1", "gender": "F", "age": "1", "occupation": "10", "zip": "02460"}
    assert [row["title"] for row in read(folder, "movies")] == [
        "Grumpier Old Men (1995)",
        'James, and "Peach": a tale (1996)',
        "Misérables, Les (1995)",
    ]


def test_ml_100k(tmp_path):
    folder = import_movielens("ml-100k", pack(tmp_path / "a.zip", ML_100K, "ml-100k/"), tmp_path / "out")
    assert read(folder, "ratings")[1] == {"user_id": "186", "movie_id": "1", "rating": 5, "timestamp": 891717742}
    assert read(folder, "users")[0]["zip"] == "00000"
    assert read(folder, "movies") == [
        {"movie_id": "1", "title": "Toy Story (1995)", "genres": "Animation|Children's|Comedy"},
        {"movie_id": "267", "title": "unknown", "genres": "unknown"},
    ]


@pytest.mark.parametrize("inner", ["", "MovieLens 1M/", "a/b/c/"])
def test_the_inner_folder_may_have_any_name(tmp_path, inner):
    folder = import_movielens("ml-1m", pack(tmp_path / "a.zip", ML_1M, inner), tmp_path / "out")
    assert len(read(folder, "users")) == 2


def test_a_finder_copy_is_not_taken_for_the_data(tmp_path):
    files = {"ml-1m/" + name: content for name, content in ML_1M.items()} | {"__MACOSX/users.dat": "junk"}
    assert len(read(import_movielens("ml-1m", pack(tmp_path / "a.zip", files, ""), tmp_path / "out"), "users")) == 2


@pytest.mark.parametrize(("name", "dataset", "rows"), [("ml-1m", "movielens-1m", 3), ("ml-100k", "movielens-100k", 2)])
def test_the_embedded_spec_reads_it(tmp_path, monkeypatch, name, dataset, rows):
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path / "data"))
    import_movielens(name, pack(tmp_path / "a.zip", CONTENT[name]), tmp_path / "data" / name)
    spec = load_spec(dataset)
    tables = validated_tables(spec)
    assert tables.impressions.num_rows == rows, "ratings of 3 are dropped"
    assert len(spec.model_fields_of("user")) == 5
    assert len(spec.model_fields_of("item")) == 3
    assert spec.field("title").in_prompt


@pytest.mark.parametrize("lost", ["ratings.dat", "users.dat", "movies.dat"])
def test_a_missing_file_is_named(tmp_path, lost):
    files = {name: content for name, content in ML_1M.items() if name != lost}
    with pytest.raises(UserError, match=rf"a\.zip: lacks the file {lost}"):
        import_movielens("ml-1m", pack(tmp_path / "a.zip", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("ratings.dat", "1::1193::five::978300760\n", "five"),
        ("ratings.dat", "1::1193::5\n", "columns"),
        ("users.dat", "1::F::1::10::02460::x\n", "columns"),
        ("movies.dat", "", "movies.dat"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, file, content, message):
    with pytest.raises(UserError, match=file) as caught:
        import_movielens("ml-1m", pack(tmp_path / "a.zip", ML_1M | {file: content}), tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"a\.zip: not a readable ZIP.*download it again"):
        import_movielens("ml-1m", tmp_path / "a.zip", tmp_path / "out")


def test_a_zip_with_damaged_bytes(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[60:70] = b"\xff" * 10
    archive.write_bytes(content)
    with pytest.raises(UserError, match="not a readable ZIP"):
        import_movielens("ml-1m", archive, tmp_path / "out")


def test_a_zip_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"gone\.zip: no such file.*--from"):
        import_movielens("ml-1m", tmp_path / "gone.zip", tmp_path / "out")


def test_an_unknown_name(archive, tmp_path):
    with pytest.raises(UserError, match="no MovieLens data 'ml-20m'; write ml-1m or ml-100k"):
        import_movielens("ml-20m", archive, tmp_path / "out")


def test_an_earlier_import_stays_when_the_next_one_fails(archive, tmp_path):
    folder = import_movielens("ml-1m", archive, tmp_path / "out")
    with pytest.raises(UserError):
        import_movielens("ml-1m", pack(tmp_path / "a.zip", {"ratings.dat": "x"}), folder)
    assert len(read(folder, "users")) == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_a_folder_that_cannot_be_written(archive, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*TANDEM_DATA"):
        import_movielens("ml-1m", archive, tmp_path / "file" / "out")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real server in place of GroupLens; yields the folder that it shows."""
    shown = tmp_path / "shown"
    shown.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shown))) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(movielens, "BASE_URL", f"http://127.0.0.1:{running.server_port}")
        yield shown
        running.shutdown()


def test_download_tells_its_progress(server, tmp_path):
    pack(server / "ml-1m.zip", ML_1M)
    told = []
    folder = import_movielens("ml-1m", None, tmp_path / "out", lambda done, total: told.append((done, total)))
    assert len(read(folder, "users")) == 2
    size = (server / "ml-1m.zip").stat().st_size
    assert told[-1] == (size, size)


def test_download_that_is_not_there(server, tmp_path):
    with pytest.raises(UserError, match=r"ml-100k\.zip: cannot be downloaded.*--from"):
        import_movielens("ml-100k", None, tmp_path / "out")


def test_download_that_breaks_off(server, tmp_path, monkeypatch):
    pack(server / "ml-1m.zip", ML_1M)
    size = (server / "ml-1m.zip").stat().st_size

    def promise_more(self, keyword, value, send=SimpleHTTPRequestHandler.send_header):
        send(self, keyword, str(size + 9) if keyword == "Content-Length" else value)

    monkeypatch.setattr(SimpleHTTPRequestHandler, "send_header", promise_more)
    with pytest.raises(UserError, match=rf"broke off after {size} of {size + 9} bytes"):
        import_movielens("ml-1m", None, tmp_path / "out")


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens, "BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/ml-1m\.zip: cannot be downloaded.*download it yourself"):
        import_movielens("ml-1m", None, tmp_path / "out")


def real_archive():
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "ml-1m.zip"
    return Path(os.environ.get("TANDEM_TEST_ML1M") or beside)


@pytest.mark.skipif(not real_archive().is_file(), reason="set TANDEM_TEST_ML1M to the ZIP of MovieLens-1M")
def test_the_real_ml_1m(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_DATA", str(tmp_path))
    import_movielens("ml-1m", real_archive(), tmp_path / "ml-1m")
    summary = validated_tables(load_spec("movielens-1m")).summary
    assert summary["rows"] == 739_012, "CTRL, table 1"
    assert (summary["users"], summary["unknown_users"], summary["unknown_items"]) == (6040, 0, 0)
