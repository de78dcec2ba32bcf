"""The service under load, beside the bare model and beside plain BentoML + torch + Feast.

    python -m tests.benchmarks.serving --workdir DIR [--seconds 8] [--candidates 10 100 500] [--workers 1] [--json FILE]

A real server with a core for each of its workers, a real Redis, and a client process on the other cores. Without a
deployed model DIR gets one: AutoInt + MLP on MovieLens-1M (`tandem data ml-1m` must have been run), one epoch. For each
number of candidates:

- bare: the ONNX Runtime call alone, whole and folded, in a process of its own on the server's core;
- closed: one request after the other on one connection (p50, p99), then on 8 connections (requests/s);
- open: arrivals at random times at half of that rate; latency counts from when a request should have been sent;
- peer: the checkpoint in torch behind a plain BentoML service that asks Feast for the user and the items each time;
- predict: as many pairs of random users and items to `/predict`, which reads each user, and scores whole rows

A server is measured once what starts beside it has started: the follower of the registry imports for seconds after the
service is ready, on the same core.

CPU is what a request took of the server's core, in milliseconds: other work on the machine disturbs it least.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.services.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
DATASET = "movielens-1m"
RANK, PREDICT = "/rank", "/predict"
TARGETS = {
    "p50 / bare, 500 candidates": ("at most", 1.5),
    "p50 / bare, 100 candidates": ("at most", 3.0),
    "requests/s / peer's, 100 candidates": ("at least", 8.0),
    "p99 at half load / p50, 100 candidates": ("at most", 3.0),
    "folded call, times whole, 500 candidates": ("at least", 2.0),
    "memory, MB": ("at most", 600.0),
    "seconds to ready": ("at most", 6.0),
}
STORE = """
project: ${PROJECT}
provider: local
registry: {registry_type: file, path: "${HOME_FEAST}/registry.db", cache_ttl_seconds: 600}
offline_store: {type: feature_repo.offline.AsofOfflineStore, memory_limit: 3GB}
online_store: {type: redis, connection_string: "${TANDEM_FEAST_REDIS}"}
materialization: {pull_latest_features: true, online_write_batch_size: 10000}
entity_key_serialization_version: 3
"""
QUICK = [
    *("finetune.epochs=1", "finetune.threads=1", "evaluate.resamples=100", "gate.min_auc=0.5", "gate.max_logloss=2"),
    *("gate.calibration=[0.1, 10]", "gate.slice_floors={}"),
]


# --- the client: a process of its own --------------------------------------------------------------------------------


class Caller:
    """One kept connection; it reads no more of an answer than its status and its length."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, request: bytes) -> bytes:
        """The body of the answer."""
        self.socket.sendall(request)
        found = b""
        while b"\r\n\r\n" not in found:
            found += self._more()
        head, _, body = found.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{head.decode()}: {body[:200]!r}")
        lines = (line.partition(b":") for line in head.lower().split(b"\r\n")[1:])
        length = next(int(value) for name, _, value in lines if name == b"content-length")
        while len(body) < length:
            body += self._more()
        return body

    def _more(self) -> bytes:
        more = self.socket.recv(1 << 18)
        if not more:
            raise RuntimeError("the server closed the connection")
        return more


def requests_of(path: str, candidates: int, keys: dict[str, list[str]], count: int = 500) -> list[bytes]:
    draw = np.random.default_rng(candidates)
    made = []
    for _ in range(count):
        items = [str(key) for key in draw.choice(keys["items"], candidates, replace=False)]
        if path == PREDICT:
            users = [str(key) for key in draw.choice(keys["users"], candidates)]
            pairs = [{"user_id": user, "item_id": item} for user, item in zip(users, items, strict=True)]
            asked: dict[str, Any] = {"pairs": pairs}
        else:
            asked = {"user_id": str(draw.choice(keys["users"])), "item_ids": items}
        body = json.dumps(asked).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: benchmark\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        made.append(head.encode() + b"\r\n\r\n" + body)
    return made


def closed(port: int, requests: list[bytes], connections: int, seconds: float) -> list[float]:
    """Seconds of each call, of `connections` callers that each send the next one when the last is answered."""
    taken: list[list[float]] = [[] for _ in range(connections)]
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        caller = Caller(port)
        place = number * 37
        while (began := time.perf_counter()) < until:
            caller.call(requests[place % len(requests)])
            taken[number].append(time.perf_counter() - began)
            place += 1

    _all([threading.Thread(target=work, args=(number,)) for number in range(connections)])
    return [one for each in taken for one in each]


def opened(port: int, requests: list[bytes], rate: float, seconds: float, connections: int = 32) -> list[float]:
    """Seconds from when each call was due (a Poisson process) to its answer."""
    draw = np.random.default_rng(0)
    due = np.cumsum(draw.exponential(1 / rate, int(rate * seconds) + 1))
    due = due[due < seconds]
    taken: list[float] = [0.0] * len(due)
    numbers, lock = iter(range(len(due))), threading.Lock()
    callers = [Caller(port) for _ in range(connections)]
    start = time.perf_counter() + 0.05

    def work(caller: Caller) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            time.sleep(max(0.0, start + due[number] - time.perf_counter()))
            caller.call(requests[number % len(requests)])
            taken[number] = time.perf_counter() - start - due[number]

    _all([threading.Thread(target=work, args=(caller,)) for caller in callers])
    return taken


def _all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def client(port: int, pid: int, path: str, keys_file: Path, candidates: int, seconds: float) -> dict[str, float]:
    requests = requests_of(path, candidates, json.loads(keys_file.read_text()))
    closed(port, requests, 4, min(seconds, 3.0))  # every item's parts are there, every thread has begun
    alone = closed(port, requests, 1, seconds)
    before = cpu_seconds(pid)
    busy = closed(port, requests, 8, seconds)
    spent = cpu_seconds(pid) - before
    rate = len(busy) / seconds
    half = opened(port, requests, rate / 2, seconds)
    return {
        "p50_ms": 1e3 * statistics.median(alone),
        "p99_ms": 1e3 * float(np.quantile(alone, 0.99)),
        "requests_per_s": rate,
        "cpu_ms": 1e3 * spent / len(busy),
        "half_load_p50_ms": 1e3 * statistics.median(half),
        "half_load_p99_ms": 1e3 * float(np.quantile(half, 0.99)),
    }


def cpu_seconds(pid: int) -> float:
    """What a process and its children have had of the cores."""
    return sum(sum(one.cpu_times()[:2]) for one in _family(pid))


# --- the bare call: a process of its own -----------------------------------------------------------------------------


def bare(bundle_path: Path, candidates: int, rounds: int) -> dict[str, float]:
    """Milliseconds (median, and of CPU time the mean) of the ONNX Runtime call on random ids, whole and folded."""
    from components.dataset.bundle import Bundle
    from components.dataset.layout import CANDIDATE, REQUEST
    from components.dataset.scoring import FoldedModel, WholeModel

    bundle = Bundle.open(bundle_path)
    layout = bundle.vocabulary.layout
    draw = np.random.default_rng(0)
    ids = np.zeros((candidates, layout.width), dtype=np.int64)
    for slots in layout.fields:
        shape = (1 if slots.side in REQUEST else candidates, slots.width)
        ids[:, slots.start : slots.stop] = draw.integers(slots.offset, slots.offset + slots.size, shape)
    whole = WholeModel(bundle.model_path)
    found = _timed("whole", lambda: whole.probabilities(ids), rounds)
    if bundle.folded:
        folded = FoldedModel(*bundle.folded)
        parts, request = folded.parts(layout.ids_of(CANDIDATE, ids)), layout.ids_of(REQUEST, ids[:1])
        found |= _timed("folded", lambda: folded.probabilities(request, parts), rounds)
    return found


def _timed(name: str, work: Callable[[], object], rounds: int) -> dict[str, float]:
    for _ in range(rounds // 10):
        work()
    taken, before = [], time.process_time()
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    spent = time.process_time() - before
    return {f"{name}_ms": 1e3 * statistics.median(taken), f"{name}_cpu_ms": 1e3 * spent / rounds}


# --- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis that keeps its content in a folder; its address."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "3600 1", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _until(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def server(
    command: list[str], port: int, cores: list[int], log: Path, env: dict[str, str]
) -> Iterator[dict[str, float]]:
    """A server held to some cores; the seconds until it was ready, later the most memory of one of its processes."""
    found: dict[str, float] = {}
    with log.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(["taskset", "-c", _listed(cores), *command], env=env, stdout=file, stderr=file)
    try:
        _until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close(), process)
        found |= {"ready_s": time.perf_counter() - began, "pid": process.pid}
        yield found
        found["memory_mb"] = max(one.memory_info().rss for one in _family(process.pid)) / 1e6
    finally:
        for one in _family(process.pid):
            one.terminate()
        process.wait(60)


def settle(pid: int, within: float = 180) -> None:
    """Wait until a server and what stands beside it leave the core alone while nobody asks."""
    deadline, before = time.monotonic() + within, cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(2)
        now = cpu_seconds(pid)
        if now - before < 0.1:
            return
        before = now
    raise SystemExit("the server does not come to rest")


def _listed(cores: list[int]) -> str:
    return ",".join(map(str, cores))


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [*parent.children(recursive=True), parent]


def _until(ask: Any, process: subprocess.Popen[bytes], within: float = 180) -> None:
    deadline = time.monotonic() + within
    while True:
        try:
            ask()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{process.args} did not start") from None
            time.sleep(0.05)


def prepare(home: Path, env: dict[str, str]) -> None:
    """Train and deploy a model where there is none."""
    if (home / "serving" / "latest.json").is_file():
        return
    words = [word for assignment in QUICK for word in ("--set", assignment)]
    command = [sys.executable, "-m", "pipelines.cli", "run", "--dataset", DATASET, "--method", "collaborative"]
    subprocess.run([*command, "--workdir", str(home), *words], env=env, check=True)


def keys_of(home: Path, path: Path) -> None:
    import pyarrow.parquet as pq

    (training_set,) = sorted(home.glob("runs/*/artifacts/*/retrieve/training_set"))[-1:]
    table = pq.read_table(training_set / "train.parquet", columns=["user_id", "item_id"])
    keys = {side: sorted(set(table[f"{side}_id"].to_pylist())) for side in ("user", "item")}
    path.write_text(json.dumps({"users": keys["user"], "items": keys["item"]}))


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    home, cores = flags.workdir / "home", sorted(os.sched_getaffinity(0))
    mine, others = cores[: flags.workers], _listed(cores[flags.workers :] or cores)
    with redis(flags.workdir / "redis") as address:
        (flags.workdir / "store.yaml").write_text(STORE)
        own = {"TANDEM_FEAST": str(flags.workdir / "store.yaml"), "TANDEM_FEAST_REDIS": address}
        own |= {"TANDEM_HOME": str(home), "BENTOML_HOME": str(home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **own}
        prepare(home, env)
        keys = flags.workdir / "keys.json"
        keys_of(home, keys)
        bundle = next(home.glob("bentoml/models/*/*/manifest.json")).parent
        found: dict[str, Any] = {"rows": []}

        def run(where: str, *words: str) -> dict[str, float]:
            command = ["taskset", "-c", where, sys.executable, "-m", "tests.benchmarks.serving", *words]
            done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return answer

        def load(port: int, pid: float, candidates: int, path: str = RANK) -> dict[str, float]:
            words = [str(port), str(int(pid)), path, str(keys), str(candidates), str(flags.seconds)]
            return run(others, "--client", *words)

        for candidates in flags.candidates:
            rounds = max(200, 100_000 // candidates)
            found["rows"].append(
                {"candidates": candidates, **run(str(mine[0]), "--bare", str(bundle), str(candidates), str(rounds))}
            )
        port = free_port()
        serve = [sys.executable, "-m", "pipelines.cli", "serve", "--dataset", DATASET, "--port", str(port)]
        with server([*serve, "--workers", str(flags.workers)], port, mine, flags.workdir / "server.log", env) as said:
            settle(int(said["pid"]))
            for row in found["rows"]:
                row |= load(port, said["pid"], row["candidates"])
                row["predict"] = load(port, said["pid"], row["candidates"], PREDICT)
        found |= said
        port = free_port()
        peer = [sys.executable, "-m", "bentoml", "serve", "tests.benchmarks.serving_peer:Peer", "--port", str(port)]
        env["PEER_WORKERS"] = str(flags.workers)
        with server([*peer, "--working-dir", str(ROOT)], port, mine, flags.workdir / "peer.log", env) as said:
            settle(int(said["pid"]))
            for row in found["rows"]:
                row["peer"] = load(port, said["pid"], row["candidates"])
        return {**found, "peer": said}


def judge(found: dict[str, Any]) -> dict[str, float]:
    """The figures that have a target; those whose number of candidates was not measured are left out."""
    figures = {"memory, MB": found["memory_mb"], "seconds to ready": found["ready_s"]}
    for row in found["rows"]:
        at, peer = f", {row['candidates']} candidates", row["peer"]
        figures["p50 / bare" + at] = row["p50_ms"] / row["whole_ms"]
        figures["CPU time / bare" + at] = row["cpu_ms"] / row["whole_cpu_ms"]
        figures["requests/s / peer's" + at] = row["requests_per_s"] / peer["requests_per_s"]
        figures["peer's CPU time / ours" + at] = peer["cpu_ms"] / row["cpu_ms"]
        figures["p99 at half load / p50" + at] = row["half_load_p99_ms"] / row["p50_ms"]
        if "folded_ms" in row:
            figures["folded call, times whole" + at] = row["whole_cpu_ms"] / row["folded_cpu_ms"]
    return figures


def table(found: dict[str, Any]) -> str:
    head = ["candidates", "whole call", "folded call", "p50", "p99", "outside the model", "requests/s", "half load p50"]
    head += ["half load p99", "CPU", "peer p50", "peer p99", "peer requests/s", "peer CPU"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found["rows"]:
        call, peer = row.get("folded_ms", row["whole_ms"]), row["peer"]
        cells = [f"{row['candidates']}", f"{row['whole_ms']:.2f}", f"{call:.2f}", f"{row['p50_ms']:.2f}"]
        cells += [f"{row['p99_ms']:.2f}", f"{1 - call / row['p50_ms']:.0%}", f"{row['requests_per_s']:.0f}"]
        cells += [f"{row['half_load_p50_ms']:.2f}", f"{row['half_load_p99_ms']:.2f}", f"{row['cpu_ms']:.2f}"]
        cells += [f"{peer['p50_ms']:.1f}", f"{peer['p99_ms']:.1f}", f"{peer['requests_per_s']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{peer['cpu_ms']:.1f}"]) + " |")
    return "\n".join(lines)


def predictions(found: dict[str, Any]) -> str:
    lines = ["| pairs | p50 | p99 | requests/s | half load p50 | half load p99 | CPU |", "|" + "---|" * 7]
    for row in found["rows"]:
        one = row["predict"]
        cells = [f"{row['candidates']}", f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}", f"{one['requests_per_s']:.0f}"]
        cells += [f"{one['half_load_p50_ms']:.2f}", f"{one['half_load_p99_ms']:.2f}", f"{one['cpu_ms']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("serving-benchmark"))
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.client:
        port, pid, path, keys, candidates, seconds = flags.client
        print(json.dumps(client(int(port), int(pid), path, Path(keys), int(candidates), float(seconds))))
        return
    if flags.bare:
        bundle, candidates, rounds = flags.bare
        print(json.dumps(bare(Path(bundle), int(candidates), int(rounds))))
        return
    flags.workdir = flags.workdir.resolve()
    flags.workdir.mkdir(parents=True, exist_ok=True)
    found = measure(flags)
    print(table(found), predictions(found), sep="\n\n")
    found["judged"] = judge(found)
    for name, value in found["judged"].items():
        if name not in TARGETS:
            print(f"{name}: {value:.2f}")
            continue
        word, bound = TARGETS[name]
        met = value <= bound if word == "at most" else value >= bound
        print(f"{name}: {value:.2f} (target {word} {bound:g}: {'met' if met else 'missed'})")
    print(json.dumps(found))
    if flags.json:
        flags.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
