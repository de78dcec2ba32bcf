"""The engine: texts in, vectors out, with tokens cut in one thread while worker processes run the PLM."""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from components.dataset.errors import UserError
from components.encode.batches import Batch, Tokeniser
from components.encode.forward import Vectors
from components.encode.machine import Plan
from components.encode.worker import FAILED, HALVED, HEADER, VECTORS
from components.models.plm import PlmSpec, locate

log = logging.getLogger("tandem.encode")

#: Batches that wait in a worker's socket while it computes.
AHEAD = 2
#: How often a blocked thread looks whether the engine was stopped, in seconds.
PATIENCE = 0.2
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Block:
    """Texts encoded together: their number in the stream, and what is there of them so far."""

    number: int
    texts: int
    vectors: Vectors | None = None
    tokens: int = 0
    done: int = 0
    #: Seconds that the block took, summed over the workers' forward passes and divided by their number.
    seconds: float = 0.0

    def add(self, batch: Batch, vectors: Vectors, seconds: float) -> None:
        """Put the vectors of a batch at their rows."""
        if self.vectors is None:
            self.vectors = np.empty((self.texts, vectors.shape[1]), dtype=np.float32)
        self.vectors[batch.rows] = vectors
        self.tokens += int(batch.lengths.sum())
        self.done += len(batch.rows)
        self.seconds += seconds


@dataclass
class _Stream:
    """The queues of one stream. Everything that waits is bounded, however many texts there are."""

    workers: int
    tasks: queue.Queue[Batch | None] = field(init=False)
    results: queue.Queue[Any] = field(init=False)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.tasks = queue.Queue(maxsize=2 * self.workers)
        self.results = queue.Queue(maxsize=4 * self.workers)

    def put(self, target: queue.Queue[Any], item: Any) -> None:
        """Wait for room, but not longer than the stream lives."""
        while not self.stopped.is_set():
            try:
                return target.put(item, timeout=PATIENCE)
            except queue.Full:
                continue
        raise _StoppedError

    def take(self) -> Batch | None:
        """The next batch; None after the last."""
        while not self.stopped.is_set():
            try:
                return self.tasks.get(timeout=PATIENCE)
            except queue.Empty:
                continue
        raise _StoppedError

    def run(self, work: Callable[[], None]) -> None:
        """Run in a thread; an error reaches whoever reads the results."""

        def guarded() -> None:
            try:
                work()
            except _StoppedError:
                pass
            except BaseException as error:
                self._report(error)

        threading.Thread(target=guarded, daemon=True).start()

    def _report(self, error: BaseException) -> None:
        try:
            self.put(self.results, error)
        except _StoppedError:
            log.debug("error after the stream was stopped: %s", error)


class _StoppedError(Exception):
    """The stream ended while a thread was waiting."""


class Engine:
    """Encodes streams of texts with one PLM. Use it as a context: on leaving, its worker processes end.

    Processes of one thread each beat threads on a CPU: the PLM's matrices are small, and threads wait for each
    other after each. On GPUs there is one process for each.
    """

    def __init__(self, plm: PlmSpec, plan: Plan, onnx: Path | None = None) -> None:
        self.plan = plan
        self.tokeniser = Tokeniser.of(plm, locate(plm), plan.batch_tokens)
        self.connections, self.process = _start(plm, plan, onnx)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        for connection in self.connections:
            connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def stream(self, blocks: Iterable[Sequence[str]]) -> Iterator[Block]:
        """Encode blocks of texts; each is yielded when it is whole, mostly in order.

        Args:
            blocks: Read in a thread of its own, a few batches ahead of the workers.

        Raises:
            UserError: a text is not UTF-8 or does not fit into memory, or the PLM cannot be loaded.
            RuntimeError: a worker process failed or was killed.
        """
        stream = _Stream(len(self.connections))
        open_: dict[int, Block] = {}
        try:
            stream.run(lambda: self._feed(stream, blocks, open_))
            for connection in self.connections:
                stream.run(lambda of=connection: self._serve(stream, of))  # type: ignore[misc]
            yield from self._gather(stream, open_)
        finally:
            stream.stopped.set()

    def _feed(self, stream: _Stream, blocks: Iterable[Sequence[str]], open_: dict[int, Block]) -> None:
        """Cut texts into tokens ahead of the workers."""
        for number, texts in enumerate(blocks):
            open_[number] = Block(number, len(texts))
            for batch in self.tokeniser.batches(number, texts):
                stream.put(stream.tasks, batch)
        for _ in self.connections:
            stream.put(stream.tasks, None)

    def _serve(self, stream: _Stream, connection: Connection) -> None:
        """Hand batches to one worker, a few ahead, and take its vectors."""
        waiting: list[Batch] = []
        more = True
        while more or waiting:
            while more and len(waiting) < AHEAD:
                batch = stream.take()
                more = batch is not None
                if batch is not None:
                    self._send(connection, batch)
                    waiting.append(batch)
            if waiting:
                vectors, seconds = self._receive(connection)
                stream.put(stream.results, (waiting.pop(0), vectors, seconds))
        stream.put(stream.results, None)

    def _send(self, connection: Connection, batch: Batch) -> None:
        try:
            connection.send_bytes(batch.to_bytes())
        except OSError:
            # What the worker said before it ended is still to be read, and tells why.
            while True:
                self._receive(connection)

    def _receive(self, connection: Connection) -> tuple[Vectors, float]:
        while True:
            try:
                content = connection.recv_bytes()
            except (EOFError, OSError):
                raise RuntimeError(self._death()) from None
            kind, rest = content[:1], content[1:]
            if kind == VECTORS:
                seconds, texts, dim = HEADER.unpack_from(rest)
                return np.frombuffer(rest, np.float32, offset=HEADER.size).reshape(texts, dim), seconds
            if kind == HALVED:
                log.warning("out of memory: going on with batches of %d tokens", json.loads(rest)["tokens"])
            if kind == FAILED:
                raise _failure(json.loads(rest))

    def _death(self) -> str:
        code = self.process.poll()
        ended = "" if code is None else f" (exit code {code})"
        return (
            f"a worker process of the encode step was killed{ended}, most often for want of memory; "
            "finished blocks are kept: run again, with fewer encode.processes if it recurs"
        )

    def _gather(self, stream: _Stream, open_: dict[int, Block]) -> Iterator[Block]:
        """Blocks as they become whole."""
        working = len(self.connections)
        while working:
            result = stream.results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                working -= 1
                continue
            batch, vectors, seconds = result
            block = open_[batch.block]
            block.add(batch, vectors, seconds / len(self.connections))
            if block.done == block.texts:
                del open_[batch.block]
                yield block


def _failure(content: dict[str, str]) -> Exception:
    if content["kind"] == "user":
        return UserError(content["message"])
    return RuntimeError(f"a worker process of the encode step failed:\n{content['message']}")


def _start(plm: PlmSpec, plan: Plan, onnx: Path | None) -> tuple[list[Connection], subprocess.Popen[bytes]]:
    """Start the workers; they load the PLM while the step cuts the first tokens."""
    pairs = [socket.socketpair() for _ in range(plan.processes)]
    settings = {
        "plm": plm.model_dump(mode="json"),
        "device": plan.device,
        "precision": plan.precision,
        "threads": plan.threads,
        "onnx": str(onnx) if onnx else "",
    }
    theirs = [their.fileno() for _, their in pairs]
    command = [sys.executable, "-m", "components.encode.worker", json.dumps(settings), *map(str, theirs)]
    process = subprocess.Popen(command, pass_fds=theirs, stdin=subprocess.DEVNULL, env=_environment(plan))
    for _, their in pairs:
        their.close()
    return [Connection(ours.detach()) for ours, _ in pairs], process


def _environment(plan: Plan) -> dict[str, str]:
    threads = str(plan.threads)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    return {**os.environ, **pinned, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
