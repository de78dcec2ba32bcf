"""Worker processes: the PLM is loaded once, then shared by as many processes as there are cores or GPUs.

Started as `python -m components.encode.worker SETTINGS SOCKET...`. Not by multiprocessing: that would import the
main module of whoever runs the step again in each worker. Each worker talks to the step over a socket of its own:
batches come in, vectors go back, in order. A closed socket is the end.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from components.dataset.errors import UserError
from components.encode.batches import unpack
from components.encode.forward import Encoder, Forward, OnnxForward, TorchForward, load_model
from components.models.plm import PlmSpec

#: First byte of a message from a worker.
VECTORS, READY, HALVED, FAILED = b"V", b"R", b"H", b"F"
#: Of a message with vectors: seconds of the forward pass, texts, dimensions.
HEADER = struct.Struct("<dii")


def main(arguments: Sequence[str]) -> None:
    """Load the PLM, then serve each socket from a process of its own."""
    # The step closes the sockets when it is interrupted; a traceback from every worker would say nothing more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = json.loads(arguments[0])
    sockets = [int(number) for number in arguments[1:]]
    try:
        make = _loaded(settings)
    except Exception as error:
        for number in sockets:
            _tell(Connection(number), error)
        return
    if len(sockets) == 1:
        _serve(Connection(sockets[0]), make, 0)
        return
    workers = [_fork(sockets, rank, make) for rank in range(len(sockets))]
    for number in sockets:
        os.close(number)
    for worker in workers:
        os.waitpid(worker, 0)


def _loaded(settings: dict[str, Any]) -> Callable[[int], Forward]:
    """What makes a worker's forward pass from its rank. The weights are loaded here, before the processes part."""
    spec, threads = PlmSpec(**settings["plm"]), int(settings["threads"])
    if settings["onnx"]:
        return lambda _: OnnxForward(Path(settings["onnx"]), threads)
    import torch

    torch.set_num_threads(threads)
    model = load_model(spec)
    bf16 = settings["precision"] == "bf16"

    def make(rank: int) -> Forward:
        device = f"cuda:{rank}" if settings["device"] == "cuda" else "cpu"
        return TorchForward(model, spec.pooling, device, bf16)

    return make


def _fork(sockets: Sequence[int], rank: int, make: Callable[[int], Forward]) -> int:
    """A process for one socket. Each holds its own socket only, or none would see another's end."""
    process = os.fork()
    if process:
        return process
    for number in sockets:
        if number != sockets[rank]:
            os.close(number)
    try:
        _serve(Connection(sockets[rank]), make, rank)
    finally:
        os._exit(0)


def _serve(connection: Connection, make: Callable[[int], Forward], rank: int) -> None:
    """Encode batches until the socket closes."""
    try:
        encoder = Encoder(make(rank), lambda tokens: _send(connection, HALVED, {"tokens": tokens}))
        _send(connection, READY, {})
        batches = _reader(connection)
        while (content := batches.get()) is not None:
            started = time.perf_counter()
            vectors = encoder(unpack(content))
            header = HEADER.pack(time.perf_counter() - started, *vectors.shape)
            connection.send_bytes(VECTORS + header + vectors.tobytes())
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        _tell(connection, error)


def _reader(connection: Connection) -> queue.Queue[bytes | None]:
    """Batches as they come. They are taken off the socket at once, so that the step is never blocked on sending."""
    batches: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        try:
            while True:
                batches.put(connection.recv_bytes())
        except (EOFError, OSError):
            batches.put(None)

    threading.Thread(target=read, daemon=True).start()
    return batches


def _tell(connection: Connection, error: Exception) -> None:
    kind = "user" if isinstance(error, UserError) else "error"
    message = str(error) if kind == "user" else traceback.format_exc()
    _send(connection, FAILED, {"kind": kind, "message": message})


def _send(connection: Connection, kind: bytes, content: dict[str, Any]) -> None:
    connection.send_bytes(kind + json.dumps(content).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
