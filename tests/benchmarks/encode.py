"""Texts per second of the encode step beside sentence-transformers: same PLM, same texts, same cores, one run.

    python -m tests.benchmarks.encode [--texts 20000] [--threads 4] [--rounds 3] [--data ml-1m.zip] [--json FILE]

The texts are the user's and the item's prompt of impressions spread evenly over MovieLens-1M (../shared/data,
TANDEM_DATA or --data), in their order, so users and items recur as they do in a log; without the file, impressions
are drawn with about the same lengths and duplicates. Both systems run with their PLM loaded; rounds alternate
between them, and each counts with its best. "each once" leaves the duplicates out for both: what is left is the speed
of the engines alone. Then the whole step is run with an empty cache, a full one, and with 5 % new texts.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.catalog import load_spec
from components.dataset.movielens import import_movielens
from components.dataset.prompts import PromptSet
from components.dataset.training_set import write_training_set
from components.encode.batches import Tokeniser
from components.encode.engine import Engine
from components.encode.int8 import cosines, prepare_int8, spread
from components.encode.machine import plan
from components.encode.settings import EncodeSettings
from components.encode.step import encode
from components.models.plm import locate
from components.prompt_transform.settings import PromptSettings
from components.prompt_transform.step import prompt_transform
from components.run import data_home, read_json
from tests.components.encode.making import write_prompts

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"fp32": 1.3, "int8": 2.5}
LEAST_COSINE = {"fp32": 0.9999, "int8": 0.99}
PEAK = """
import time, torch
torch.set_num_threads(1)
a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
best, end = 0.0, time.time() + 4
while time.time() < end:
    started = time.perf_counter()
    for _ in range(8): a @ b
    best = max(best, 8 * 2 * 1024**3 / (time.perf_counter() - started) / 1e9)
print(best)
"""


# --- texts -------------------------------------------------------------------------------------------------------


def archive_of(given):
    places = [given, ROOT.parent / "shared" / "data" / "ml-1m.zip", data_home() / "ml-1m.zip"]
    return next((place for place in places if place is not None and place.is_file()), None)


def impressions_of(archive, rows, folder):
    """Impressions with the fields of their user and item, as a table for the spec movielens-1m."""
    if archive is None:
        return drawn_impressions(rows)
    import_movielens("ml-1m", archive, folder / "ml-1m")
    ratings, users, movies = (pq.read_table(folder / "ml-1m" / f"{n}.parquet") for n in ("ratings", "users", "movies"))
    ratings = ratings.sort_by("timestamp")
    ratings = ratings.take(np.unique(np.linspace(0, ratings.num_rows - 1, rows).astype(int)))
    joined = ratings.join(users, "user_id").join(movies, "movie_id").sort_by("timestamp")
    columns = {
        name: joined[name].cast(pa.string()) for name in ("user_id", "gender", "age", "occupation", "zip", "title")
    }
    genres = pa.array([text.split("|") for text in joined["genres"].to_pylist()])
    return pa.table({**columns, "item_id": joined["movie_id"].cast(pa.string()), "genres": genres})


def drawn_impressions(rows):
    """Users and items as skewed as MovieLens-1M's, with titles of one to seven words."""
    random = np.random.default_rng(1)
    words = ["night", "the", "last", "story", "love", "return", "man", "house", "of", "king", "blue", "star", "river"]
    genres = ["Drama", "Comedy", "Action", "Thriller", "Romance", "Sci-Fi", "Horror"]
    titles = [" ".join(random.choice(words, random.integers(1, 8))) + f" ({1920 + i % 80})" for i in range(3700)]
    kinds = [list(random.choice(genres, random.integers(1, 4), replace=False)) for _ in titles]
    user, item = (np.minimum(random.pareto(1.2, rows) * n / 12, n - 1).astype(int) for n in (6040, 3700))
    ages = ["1", "18", "25", "35", "45", "50", "56"]
    return pa.table(
        {
            "user_id": [str(u) for u in user],
            "gender": ["FM"[u % 2] for u in user],
            "age": [ages[u % 7] for u in user],
            "occupation": [str(u % 21) for u in user],
            "zip": [f"{10_000 + 13 * u:05d}" for u in user],
            "title": [titles[i] for i in item],
            "item_id": [str(i) for i in item],
            "genres": [[str(kind) for kind in kinds[i]] for i in item],
        }
    )


def texts_of(archive, count, folder):
    """The prompts of impressions, user and item in turn, as the prompt_transform step says them."""
    table = impressions_of(archive, count // 2, folder)
    rows = table.num_rows
    numbers = pa.array(range(rows), pa.int64())
    table = table.append_column("impression_id", numbers)
    table = table.append_column("event_timestamp", numbers.cast(pa.timestamp("us", "UTC")))
    table = table.append_column("label", pa.array(np.arange(rows) % 2, pa.int8()))
    parts = {"train": table.slice(0, rows - 2), "valid": table.slice(rows - 2, 1), "test": table.slice(rows - 1, 1)}
    write_training_set(folder / "data", load_spec("movielens-1m"), parts, {})
    prompt_transform(folder / "data", folder / "prompts", PromptSettings())
    prompts = PromptSet.open(folder / "prompts")
    texts = prompts.texts(["text"])["text"].to_pylist()
    index = [prompts.index(part) for part in parts]
    pairs = np.stack([np.concatenate([of[name] for of in index]) for name in ("user_text", "item_text")], axis=1)
    return [texts[number] for number in pairs.ravel()]


# --- systems -----------------------------------------------------------------------------------------------------


def peer_of(settings, threads):
    """sentence-transformers as its own documentation has it, with the batch size that suits it better."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(locate(settings.plm)), device="cpu")
    model.max_seq_length = settings.plm.max_length

    def run(size):
        return lambda texts: model.encode(texts, batch_size=size, show_progress_bar=False)

    return {f"sentence-transformers, batch {size}": run(size) for size in (32, 128)}


def ours(engine, block=4096):
    """Each different text once through the engine, then a vector for every text."""

    def run(texts):
        number = {}
        codes = np.array([number.setdefault(text, len(number)) for text in texts])
        unique = list(number)
        matrix = None
        for done in engine.stream(unique[i : i + block] for i in range(0, len(unique), block)):
            matrix = np.empty((len(unique), done.vectors.shape[1]), np.float32) if matrix is None else matrix
            matrix[done.number * block : done.number * block + done.texts] = done.vectors
        return matrix[codes]

    return run


def timed(systems, texts, rounds):
    """Least seconds of each system over alternating rounds, and its vectors."""
    seconds, vectors = {}, {}
    for _ in range(rounds):
        for name, run in systems.items():
            started = time.perf_counter()
            vectors[name] = run(texts)
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - started)
            print(f"  {name:<36}{len(texts):>8} texts {time.perf_counter() - started:>8.2f} s", file=sys.stderr)
    return seconds, vectors


def peak_of(threads):
    """GFLOP/s of fp32 matrix products of 1024 x 1024, one process of one thread for each core, all at once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(threads)]
    return sum(float(process.communicate()[0]) for process in running)


def flops_of(settings, lengths):
    """Floating point operations of the matrix products of a forward pass over texts of these lengths in tokens."""
    config = read_json(locate(settings.plm) / "config.json")
    layers, dim, inner = (config[n] for n in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    return float(sum(layers * (2 * n * (4 * dim * dim + 2 * dim * inner) + 4 * n * n * dim) for n in lengths))


# --- the run -----------------------------------------------------------------------------------------------------


def measure(options, folder):
    settings = EncodeSettings(processes=options.threads)
    archive = archive_of(options.data)
    texts = texts_of(archive, options.texts, folder)
    once = list(dict.fromkeys(texts))
    lengths = dict(zip(once, map(len, Tokeniser.of(settings.plm, locate(settings.plm), 1).ids(once)), strict=True))
    fp32, int8 = plan(settings, len(once)), plan(settings.model_copy(update={"precision": "int8"}), len(once))
    onnx = prepare_int8(settings.plm, spread(once), options.threads)
    result = {
        "machine": f"{platform.machine()}, {options.threads} of {os.cpu_count()} cores",
        "texts": {"from": "MovieLens-1M" if archive else "generated", "all": len(texts), "each once": len(once)},
        "tokens": {"all": sum(lengths[text] for text in texts), "each once": sum(lengths.values())},
        "peak_gflops": round(peak_of(options.threads), 1),
    }
    with Engine(settings.plm, fp32) as exact, Engine(settings.plm, int8, onnx) as rough:
        systems = peer_of(settings, options.threads) | {"fp32": ours(exact), "int8": ours(rough)}
        for run in systems.values():
            run(once[:64])
        result["systems"] = compare(settings, systems, {"all": texts, "each once": once}, lengths, options.rounds)
    result["step"] = whole_step(texts, once, folder, options.threads)
    result["targets"] = judged(result["systems"])
    return result


def compare(settings, systems, inputs, lengths, rounds):
    """A row for each system and input: texts/s, tokens/s, share of the matmul peak, times the peer, cosine to it."""
    rows = {}
    for name, texts in inputs.items():
        seconds, vectors = timed(systems, texts, rounds)
        peer = min((of for of in seconds if of.startswith("sentence")), key=seconds.__getitem__)
        for system in seconds:
            done = texts if system.startswith("sentence") else list(dict.fromkeys(texts))
            rows[f"{system}, {name}"] = {
                "seconds": round(seconds[system], 2),
                "texts_per_second": round(len(texts) / seconds[system], 1),
                "tokens_per_second": round(sum(lengths[text] for text in done) / seconds[system], 1),
                "gflops": round(flops_of(settings, (lengths[text] for text in done)) / seconds[system] / 1e9, 1),
                "times_sentence_transformers": round(seconds[peer] / seconds[system], 2),
                "least_cosine": round(float(cosines(vectors[peer], vectors[system]).min()), 6),
            }
    return rows


def whole_step(texts, once, folder, threads):
    """Seconds of the step as the pipeline runs it, imports of the workers and the PLM's loading included."""
    settings = EncodeSettings(processes=threads, cache=str(folder / "cache"))
    new = [f"{text} Seen for the first time." for text in once[: max(1, len(once) // 20)]]
    found = {}
    for name, of in {"empty cache": once, "second run": once, "5 % new texts": [*new, *once]}.items():
        write_prompts(folder / "step", of)
        started = time.perf_counter()
        cache = encode(folder / "step", folder / "out", settings)["cache"]
        counts = {key: cache[key] for key in ("hits", "misses", "seconds_saved")}
        found[name] = {"seconds": round(time.perf_counter() - started, 2), **counts}
    return found


def judged(systems):
    return {
        precision: {
            "times": systems[f"{precision}, all"]["times_sentence_transformers"],
            "target": target,
            "least_cosine": systems[f"{precision}, all"]["least_cosine"],
            "met": systems[f"{precision}, all"]["times_sentence_transformers"] >= target
            and systems[f"{precision}, all"]["least_cosine"] >= LEAST_COSINE[precision],
        }
        for precision, target in TARGETS.items()
    }


def show(result):
    texts, tokens = result["texts"], result["tokens"]
    print(f"{texts['all']:,} prompts ({texts['from']}), {texts['each once']:,} different, {tokens['all']:,} tokens;")
    print(f"{result['machine']}, fp32 matmul peak {result['peak_gflops']} GFLOP/s\n")
    print("| system | seconds | texts/s | tokens/s | GFLOP/s | of peak | times peer | least cosine |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in result["systems"].items():
        figures = [row["seconds"], row["texts_per_second"], row["tokens_per_second"], row["gflops"]]
        share = f"{100 * row['gflops'] / result['peak_gflops']:.0f} %"
        print(
            f"| {name} | {' | '.join(map(str, figures))} | {share} | {row['times_sentence_transformers']} | {row['least_cosine']} |"
        )
    print()
    for name, row in result["step"].items():
        print(f"whole step, {name}: {row['seconds']} s, {row['hits']} hits, {row['misses']} misses")
    for name, row in result["targets"].items():
        print(
            f"{name}: {row['times']}x sentence-transformers, target {row['target']}x: {'met' if row['met'] else 'MISSED'}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    # For the peer, its libraries and the probe alike; the workers are given their own.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(row["met"] for row in result["targets"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
