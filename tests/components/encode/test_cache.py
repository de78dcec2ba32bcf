"""The encoding cache: found again by digest, whole or not at all, whoever else writes."""

import errno
import hashlib
import logging
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from components.dataset.errors import UserError
from components.encode.cache import EncodingCache, cache_key
from tests.services.servers import free_port

ABOUT = {"plm_digest": "d" * 64, "precision": "fp32"}


def hashes_of(count, start=0):
    return [hashlib.sha256(str(number).encode()).digest() for number in range(start, start + count)]


def vectors_of(count, start=0, dim=4):
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(dim, np.float32)


def fill(cache, count, start=0, seconds=1.0, gpus=0):
    cache.add(hashes_of(count, start), vectors_of(count, start), seconds, gpus)


def found_in(cache, wanted):
    """What the cache has of the wanted texts."""
    have = {}
    for found in cache.find(wanted):
        have.update(zip(found.hashes, found.vectors[:, 0].tolist(), strict=True))
    return have


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    yield str(tmp_path / "cache") if request.param == "local" else "memory://tandem-cache"
    MemoryFileSystem.store.clear()


def blocks_of(cache):
    return [name for name in cache.fs.ls(cache.folder, detail=False) if name.endswith(".safetensors")]


def test_texts_are_found_again(url):
    cache = EncodingCache.open(url, ABOUT)
    assert found_in(cache, set(hashes_of(5))) == {}
    fill(cache, 100)
    fill(cache, 20, start=100)
    wanted = hashes_of(30, start=80) + hashes_of(3, start=999)
    again = EncodingCache.open(url, ABOUT)
    assert found_in(again, set(wanted)) == {text: float(80 + i) for i, text in enumerate(wanted[:30])} | {
        text: float(number) for text, number in zip(hashes_of(10, start=100), range(100, 110), strict=True)
    }


def test_keys_keep_apart_what_makes_other_vectors(url):
    fill(EncodingCache.open(url, ABOUT), 3)
    for change in ({"plm_digest": "e" * 64}, {"precision": "int8"}, {"max_length": 64}, {"prefix": "query: "}):
        assert found_in(EncodingCache.open(url, ABOUT | change), set(hashes_of(3))) == {}
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})


def test_seconds_that_a_text_cost_are_kept(url):
    cache = EncodingCache.open(url, ABOUT)
    fill(cache, 10, seconds=5.0, gpus=2)
    found = next(cache.find({hashes_of(1)[0]}))
    assert found.seconds_each == pytest.approx(0.5) and found.gpu_seconds_each == pytest.approx(1.0)


def test_a_text_of_two_blocks_is_found_once_where_it_is_taken(url):
    cache = EncodingCache.open(url, ABOUT)
    fill(cache, 3)
    fill(cache, 4)
    wanted = set(hashes_of(4))
    seen = []
    for found in cache.find(wanted):
        seen += found.hashes
        wanted -= set(found.hashes)
    assert sorted(seen) == sorted(hashes_of(4))


@pytest.mark.parametrize("where", [10, 200, -40, -1], ids=["header", "vectors", "before hashes", "hashes"])
def test_a_corrupt_block_is_dropped(url, where, caplog):
    cache = EncodingCache.open(url, ABOUT)
    fill(cache, 30)
    fill(cache, 10, start=500)
    bad = next(name for name in blocks_of(cache) if name.endswith("-30.safetensors"))
    content = bytearray(cache.fs.cat_file(bad))
    content[where] ^= 0xFF
    cache.fs.pipe_file(bad, bytes(content))
    with caplog.at_level(logging.WARNING):
        assert found_in(cache, set(hashes_of(30) + hashes_of(2, start=500))).keys() == set(hashes_of(2, start=500))
    assert "is torn or corrupt: removed" in caplog.text
    assert bad not in blocks_of(cache)


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_a_torn_block_is_dropped(url, kept):
    cache = EncodingCache.open(url, ABOUT)
    fill(cache, 30)
    (bad,) = blocks_of(cache)
    cache.fs.pipe_file(bad, cache.fs.cat_file(bad)[:kept])
    assert found_in(cache, set(hashes_of(30))) == {}
    assert blocks_of(cache) == []
    fill(cache, 30)
    assert len(found_in(cache, set(hashes_of(30)))) == 30


def test_files_of_others_are_left_alone(url):
    cache = EncodingCache.open(url, ABOUT)
    fill(cache, 3)
    cache.fs.pipe_file(f"{cache.folder}/notes.txt", b"mine")
    cache.fs.pipe_file(f"{cache.folder}/.half-3.safetensors.1a2b", b"being written")
    assert len(found_in(cache, set(hashes_of(3)))) == 3
    assert cache.fs.cat_file(f"{cache.folder}/notes.txt") == b"mine"


WRITER = """
import sys, numpy as np
from tests.components.encode.test_cache import ABOUT, fill
from components.encode.cache import EncodingCache
cache = EncodingCache.open(sys.argv[1], ABOUT)
for block in range(40):
    fill(cache, 50, start=int(sys.argv[2]) + 25 * block)
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    """Two processes write blocks that overlap while a third looks up: everything it finds is right."""
    url = str(tmp_path / "cache")
    cache = EncodingCache.open(url, ABOUT)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, str(start)]) for start in (0, 500)]
    number = {text: float(n) for n, text in enumerate(hashes_of(1600))}
    while any(writer.poll() is None for writer in writers):
        have = found_in(cache, number)
        assert have == {text: number[text] for text in have}
        time.sleep(0.02)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert found_in(cache, number) == {text: n for text, n in number.items() if n < 1525}
    assert not list(Path(cache.folder).glob(".*")), "no drafts are left"


# --- faults ------------------------------------------------------------------------------------------------------


class FullFileSystem(MemoryFileSystem):
    """A store without room for blocks."""

    protocol = "full"

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if path.endswith(".safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        super().pipe_file(path, value, mode, **kwargs)


def test_no_space_left_in_a_store():
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    cache = EncodingCache.open("full://cache", ABOUT)
    with pytest.raises(UserError, match=r"encode\.cache: full://cache: no space left; free some"):
        fill(cache, 3)


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 1 MB; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_what_is_finished(tiny_disk):
    cache = EncodingCache.open(str(tiny_disk), ABOUT)
    fill(cache, 5000)
    with pytest.raises(UserError, match="no space left"):
        cache.add(hashes_of(9000, start=5000), vectors_of(9000, dim=32), 1.0, 0)
    assert len(found_in(cache, set(hashes_of(5000)))) == 5000
    assert len(blocks_of(cache)) == 1


def test_unknown_protocol_and_forbidden_folder(tmp_path):
    with pytest.raises(UserError, match=r"encode\.cache: 'nowhere://x' cannot be opened"):
        EncodingCache.open("nowhere://x", ABOUT)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"encode\.cache: .*file: cannot be reached"):
        EncodingCache.open(str(tmp_path / "file"), ABOUT)


# --- S3 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch):
    """A bucket on a moto server, a real process that speaks S3."""
    pytest.importorskip("s3fs")
    program = shutil.which("moto_server", path=str(Path(sys.executable).parent)) or shutil.which("moto_server")
    if program is None:
        pytest.skip("moto_server is not installed")
    port = free_port()
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for _ in range(100):
        try:
            urllib.request.urlopen(endpoint)
            break
        except OSError:
            time.sleep(0.1)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("tandem")
    yield "s3://tandem/encodings"
    server.terminate()
    server.wait()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.services
def test_cache_on_s3(bucket, caplog):
    cache = EncodingCache.open(bucket, ABOUT)
    fill(cache, 100)
    fill(cache, 20, start=200)
    assert len(found_in(cache, set(hashes_of(300)))) == 120
    bad = next(name for name in blocks_of(cache) if name.endswith("-100.safetensors"))
    cache.fs.pipe_file(bad, cache.fs.cat_file(bad)[:500])
    assert found_in(cache, set(hashes_of(300))).keys() == set(hashes_of(20, start=200))
    assert "is torn or corrupt" in caplog.text
    fill(cache, 100)
    assert len(found_in(EncodingCache.open(bucket, ABOUT), set(hashes_of(300)))) == 120


@pytest.mark.services
def test_bucket_that_is_not_there(bucket):
    with pytest.raises(UserError, match=r"encode\.cache: s3://other/x: cannot be reached"):
        EncodingCache.open("s3://other/x", ABOUT)
