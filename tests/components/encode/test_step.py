"""The encode step from prompts to embeddings: same vectors as plain transformers, nothing twice, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from components.dataset.embeddings import EmbeddingSet
from components.dataset.errors import UserError
from components.encode import step
from components.encode.machine import plan
from components.encode.settings import EncodeSettings
from components.encode.step import encode
from components.models.plm import PlmSpec
from tests.components.encode.making import naive_vectors, write_prompts
from tests.components.encode.tiny import prompts, save_bert


def settings_of(folder, plm=None, **changes):
    return EncodeSettings(plm=PlmSpec(name=str(folder), **(plm or {})), **changes)


def run(tmp_path, texts, settings, name="out", shard=0, shards=1):
    """Write the prompts, encode them, and open the embeddings."""
    write_prompts(tmp_path / "prompts", texts)
    meta = encode(tmp_path / "prompts", tmp_path / name, settings, shard, shards)
    return EmbeddingSet.open(tmp_path / name), meta


# --- vectors -----------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_transformers(tmp_path, bert):
    texts = ["", *prompts(300), "movie " * 2000]
    settings = settings_of(bert, block=64, batch_tokens=128)
    found, meta = run(tmp_path, texts, settings)
    np.testing.assert_allclose(found.matrix(), naive_vectors(settings.plm, texts), atol=1e-5)
    assert meta["cache"]["misses"] == 302 and meta["cache"]["hits"] == 0 and meta["cache"]["seconds"] > 0
    assert (meta["dim"], meta["precision"], meta["device"], meta["processes"]) == (32, "fp32", "cpu", 2)
    assert meta["plm"] == str(bert) and len(meta["plm_digest"]) == 64


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_decoders(tmp_path, llama, pooling):
    texts = prompts(40)
    settings = settings_of(llama, {"pooling": pooling, "prefix": "title ", "max_length": 12})
    found, _ = run(tmp_path, ["", *texts], settings)
    matrix = found.matrix()
    np.testing.assert_allclose(matrix[1:], naive_vectors(settings.plm, texts), atol=1e-5)
    assert np.isfinite(matrix[0]).all()


def test_a_text_that_occurs_twice_is_encoded_once(tmp_path, bert):
    texts = prompts(20)
    found, meta = run(tmp_path, texts + texts[::-1], settings_of(bert))
    matrix = found.matrix()
    assert meta["cache"]["misses"] == 20 and len(matrix) == 40
    assert np.array_equal(matrix[:20], matrix[20:][::-1])
    again, meta = run(tmp_path, texts + texts[::-1], settings_of(bert), "again")
    assert meta["cache"]["hits"] == 20 and np.array_equal(again.matrix(), matrix)


# --- cache and shards --------------------------------------------------------------------------------------------


def test_second_run_encodes_nothing_and_new_texts_alone_are_encoded(tmp_path, bert):
    texts, settings = prompts(100), settings_of(bert, block=32)
    first, _ = run(tmp_path, texts, settings)
    second, meta = run(tmp_path, texts[::-1], settings, "second")
    assert (meta["cache"]["hits"], meta["cache"]["misses"], meta["cache"]["tokens"]) == (100, 0, 0)
    assert meta["cache"]["seconds_saved"] > 0 and meta["processes"] == 0
    assert np.array_equal(second.matrix(), first.matrix()[::-1])
    third, meta = run(tmp_path, [*prompts(5, seed=9), *texts], settings, "third")
    assert (meta["cache"]["hits"], meta["cache"]["misses"]) == (100, 5)
    assert np.array_equal(third.matrix()[5:], first.matrix())


def test_shards_together_are_the_whole(tmp_path, bert):
    texts = prompts(50)
    whole, _ = run(tmp_path, texts, settings_of(bert))
    other = settings_of(bert, cache=str(tmp_path / "elsewhere"))
    for shard in range(3):
        _, meta = run(tmp_path, texts, other, f"shard{shard}", shard, 3)
        assert meta["cache"]["misses"] in {16, 17} and (meta["shard"], meta["shards"]) == (shard, 3)
    together = EmbeddingSet.open([tmp_path / f"shard{shard}" for shard in range(3)])
    np.testing.assert_allclose(together.matrix(), whole.matrix(), atol=1e-5)
    assert together.meta["cache"]["misses"] == 50


def test_a_shard_without_texts_still_knows_its_width(tmp_path, bert):
    found, meta = run(tmp_path, prompts(2), settings_of(bert), shard=5, shards=6)
    assert meta["dim"] == 32 and found.files == ()
    with pytest.raises(UserError, match="shard 6 of 6"):
        run(tmp_path, prompts(2), settings_of(bert), shard=6, shards=6)


def test_spans_bound_what_is_held_at_once(tmp_path, bert, monkeypatch):
    monkeypatch.setattr("components.encode.texts.SPAN", 30)
    monkeypatch.setattr("components.encode.texts.ROWS", 7)
    texts = prompts(100)
    found, meta = run(tmp_path, texts, settings_of(bert, block=16))
    assert meta["cache"]["misses"] == 100
    np.testing.assert_allclose(found.matrix(), naive_vectors(PlmSpec(name=str(bert)), texts), atol=1e-5)


RUN = """
import json, sys
from pathlib import Path
from components.encode.settings import EncodeSettings
from components.encode.step import encode
encode(Path(sys.argv[1]), Path(sys.argv[2]), EncodeSettings(**json.loads(sys.argv[3])))
"""


def test_a_killed_run_goes_on_after_its_last_block(tmp_path):
    slow = save_bert(tmp_path / "plm", hidden=512, layers=4)
    texts = prompts(1200)
    write_prompts(tmp_path / "prompts", texts)
    settings = settings_of(slow, block=40)
    arguments = [str(tmp_path / "prompts"), str(tmp_path / "out"), settings.model_dump_json()]
    process = subprocess.Popen([sys.executable, "-c", RUN, *arguments])
    cache = tmp_path / "home" / "encodings"
    while len(list(cache.glob("*/*.safetensors"))) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    meta = encode(tmp_path / "prompts", tmp_path / "out", settings)
    assert meta["cache"]["hits"] >= 120 and meta["cache"]["hits"] + meta["cache"]["misses"] == 1200
    assert meta["cache"]["misses"] > 0
    assert EmbeddingSet.open(tmp_path / "out").matrix().shape == (1200, 512)


# --- int8 --------------------------------------------------------------------------------------------------------


def test_int8_is_alike_and_has_a_cache_of_its_own(tmp_path, bert):
    texts = prompts(150)
    plain, _ = run(tmp_path, texts, settings_of(bert))
    found, meta = run(tmp_path, texts, settings_of(bert, precision="int8"), "int8")
    assert meta["precision"] == "int8" and meta["cache"]["misses"] == 150
    a, b = plain.matrix(), found.matrix()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.99 and not np.array_equal(a, b)


def test_int8_unlike_fp32_is_refused(tmp_path):
    """Two neurons of the feed-forward layer cancel each other in fp32, and no more where weights have few levels."""
    folder = save_bert(tmp_path / "plm")
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        up, down = (f"encoder.layer.{layer}.{name}.dense" for name in ("intermediate", "output"))
        weights[f"{up}.bias"][:2] = 1e4
        weights[f"{down}.weight"][:, 0] = torch.linspace(-900, 900, 32) + 0.37
        weights[f"{down}.weight"][:, 1] = -weights[f"{down}.weight"][:, 0] * 1.003
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"encode\.precision: int8 changes this PLM's vectors too much"):
        run(tmp_path, prompts(30), settings_of(folder, precision="int8"))


# --- faults ------------------------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_is_named(tmp_path, bert):
    write_prompts(tmp_path / "prompts", ["good", "bad"])
    path = tmp_path / "prompts" / "texts.parquet"
    table = pq.read_table(path)
    offsets, content = pa.py_buffer(np.array([0, 4, 6], np.int32).tobytes()), pa.py_buffer(b"good\xff\xfe")
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, content])
    pq.write_table(table.set_column(3, "text", broken), path)
    with pytest.raises(UserError, match=r"texts\.parquet: text 1 is not valid UTF-8"):
        encode(tmp_path / "prompts", tmp_path / "out", settings_of(bert))


def test_no_such_model_and_no_prompts(tmp_path, bert):
    with pytest.raises(UserError, match=r"plm\.name: no folder"):
        run(tmp_path, ["a"], settings_of("/no/such/plm"))
    with pytest.raises(UserError, match="no prompts"):
        encode(tmp_path / "nothing", tmp_path / "out", settings_of(bert))


def test_what_the_model_cannot_do_reaches_the_user_from_the_worker(tmp_path, bert):
    with pytest.raises(UserError, match=r"plm\.layers: .* has 2 layers"):
        run(tmp_path, ["a"], settings_of(bert, {"layers": 5}))
    assert not (tmp_path / "out").exists()


def test_out_of_memory_is_said_and_survived(tmp_path, bert, monkeypatch, caplog):
    """Workers with 250 MB to spare get batches that need more."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys, resource\n"
        "if 'components.encode.worker' in ' '.join(sys.orig_argv):\n"
        "    import torch, safetensors.torch, components.models.bert\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 250_000_000,) * 2)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    texts = [f"{'movie ' * 480}{number}" for number in range(600)]
    settings = settings_of(bert, {"max_length": 512}, batch_tokens=400_000, processes=1)
    found, meta = run(tmp_path, texts, settings)
    assert meta["cache"]["misses"] == 600
    assert "out of memory: going on with batches of" in caplog.text
    np.testing.assert_allclose(found.matrix()[:3], naive_vectors(settings.plm, texts[:3]), atol=1e-5)


def test_killed_worker_is_a_clear_error(tmp_path, monkeypatch):
    slow = save_bert(tmp_path / "plm", hidden=512, layers=4)
    write_prompts(tmp_path / "prompts", prompts(2000))

    class Doomed(step.Engine):
        def stream(self, blocks):
            for block in super().stream(blocks):
                os.kill(self.process.pid, signal.SIGKILL)
                yield block

    monkeypatch.setattr(step, "Engine", Doomed)
    with pytest.raises(RuntimeError, match=r"a worker process of the encode step was killed"):
        encode(tmp_path / "prompts", tmp_path / "out", settings_of(slow, block=100, processes=1))
    assert list((tmp_path / "home" / "encodings").glob("*/*-100.safetensors"))


def test_no_gpu(bert, monkeypatch):
    monkeypatch.setattr("components.encode.machine.gpus", lambda: 0)
    with pytest.raises(UserError, match=r"encode\.device: no GPU"):
        plan(settings_of(bert, device="cuda"), 1)
    with pytest.raises(UserError, match=r"encode\.precision: bf16 needs a GPU"):
        plan(settings_of(bert, precision="bf16"), 1)
    for wrong in ({"precision": "int8", "device": "cuda"}, {"precision": "bf16", "device": "cpu"}, {"blok": 1}):
        with pytest.raises(ValidationError):
            settings_of(bert, **wrong)


def test_machine_is_divided(bert, monkeypatch):
    monkeypatch.setattr("components.encode.machine.cores", lambda: 8)
    monkeypatch.setattr("components.encode.machine.gpus", lambda: 0)
    shares = [plan(settings_of(bert), texts) for texts in (1, 300, 100_000)]
    assert [(p.processes, p.threads) for p in shares] == [(1, 8), (3, 2), (8, 1)]
    assert plan(settings_of(bert, processes=2), 100_000).threads == 4
    monkeypatch.setattr("components.encode.machine.gpus", lambda: 4)
    many = plan(settings_of(bert), 100_000)
    assert (many.device, many.precision, many.processes, many.gpus, many.batch_tokens) == ("cuda", "bf16", 4, 4, 65_536)
    assert plan(settings_of(bert, precision="int8"), 100_000).device == "cpu"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_texts(tmp_path):
    """Twenty times the texts: their vectors alone are 80 MB more."""
    plm = save_bert(tmp_path / "plm", hidden=512, layers=1)
    peaks = []
    for count in (2_000, 42_000):
        write_prompts(tmp_path / f"prompts{count}", [f"movie {number}" for number in range(count)])
        settings = settings_of(plm, block=1024, cache=str(tmp_path / f"cache{count}"))
        arguments = [str(tmp_path / f"prompts{count}"), str(tmp_path / f"out{count}"), settings.model_dump_json()]
        code = RUN + "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
        assert json.loads((tmp_path / f"out{count}" / "meta.json").read_text())["cache"]["misses"] == count
    assert peaks[1] - peaks[0] < 45, peaks
