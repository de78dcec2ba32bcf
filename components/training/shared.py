"""Sums and gathers among the processes of one machine, through memory that they share.

gloo sends each message through sockets and wakes a thread at each hop: some milliseconds for a few bytes, many times in
a step that takes twenty. Here every process writes its part, counts up, and waits until all have.
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

#: One process's counter has a cache line of its own, so that counting up disturbs no other.
LINE = 64
#: Bytes of a process's part that are passed on at once: what all hold at a time stays in the processor's cache.
PIECE = 1024 * 1024
#: Up to here each process adds up everything itself; beyond, each adds up a share for all.
WHOLE = 32 * 1024
#: Looks at the counters before the core is offered to others, and before it is left to them for a while.
SPINS, YIELDS = 200, 20_000
NAP, TIMEOUT = 0.0005, 1800.0


def share_of(rank: int, size: int, rows: int) -> slice:
    """A process's part of a number of rows; the parts of all follow each other by rank."""
    return slice(rank * rows // size, (rank + 1) * rows // size)


class SharedMemory:
    """The memory, and a process's place in it.

    All processes make the same calls in the same order, each with a tensor of the same shape and type. Two halves are
    written in turn: a process that is ahead by one call does not touch what the others still read, and it cannot
    be ahead by two.

    Args:
        rank: The process's number.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.counters = _mapped(rank, size * LINE).view(torch.int64).numpy()[:: LINE // 8]
        self.counted = self.calls = 0
        self.memory = _mapped(rank, 2 * size * PIECE).view(2, size, PIECE)

    @classmethod
    @cache
    def of_this_machine(cls, rank: int, size: int) -> SharedMemory | None:
        """The memory, if all processes run on this machine and its processor keeps the order of writes (x86).

        On others the counter might be seen before what was written: Python has no means against it.
        """
        alone = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == size
        return cls(rank, size) if alone and platform.machine() in ("x86_64", "AMD64") else None

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place; the same bits in each of them."""
        total = value.detach().reshape(-1)
        for piece in total.split(PIECE // value.element_size()):  # type: ignore[no-untyped-call]
            slots = self._write(piece)
            if piece.nbytes > WHOLE:
                # Each adds up its share, in its own slot: nobody else reads that part of it.
                shares = [share_of(rank, self.size, len(piece)) for rank in range(self.size)]
                mine = shares[self.rank]
                slots[self.rank][mine] = _added([slot[mine] for slot in slots])
                self._wait()
                for slot, share in zip(slots, shares, strict=True):
                    piece[share] = slot[share]
            else:
                piece.copy_(_added(slots))
        if not value.is_contiguous():
            value.detach().copy_(total.view(value.shape))
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Every process's tensor, side by side in a new first dimension [size, ...]."""
        flat = value.detach().reshape(-1)
        found = flat.new_empty(self.size, len(flat))
        length = PIECE // value.element_size()
        pieces = torch.split(flat, length), torch.split(found, length, 1)
        for piece, place in zip(*pieces, strict=True):
            torch.stack(self._write(piece), out=place)
        return found.view(self.size, *value.shape)

    def _write(self, piece: Tensor) -> list[Tensor]:
        """Write this process's part; every process's part, once all are there."""
        self.calls += 1
        slots = [slot[: piece.nbytes].view(piece.dtype) for slot in self.memory[self.calls % 2]]
        slots[self.rank].copy_(piece)
        self._wait()
        return slots

    def _wait(self) -> None:
        """Count up, and come back when every process has.

        Raises:
            RuntimeError: a process did not come for half an hour.
        """
        self.counted += 1
        self.counters[self.rank] = self.counted
        looks, since = 0, 0.0
        while int(self.counters.min()) < self.counted:
            looks += 1
            if looks > YIELDS:
                since = since or time.monotonic()
                if time.monotonic() - since > TIMEOUT:
                    raise RuntimeError(f"a training process did not answer for {TIMEOUT:.0f} seconds")
                time.sleep(NAP)
            elif looks > SPINS:
                os.sched_yield()


def _added(parts: list[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _mapped(rank: int, size: int) -> Tensor:
    """Zeroed memory of so many bytes that all processes see; it has no name left, and goes when they do."""
    path = [""]
    if rank == 0:
        path[0] = _reserved(size)
    distributed.broadcast_object_list(path)
    with Path(path[0]).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    distributed.barrier()
    if rank == 0:
        Path(path[0]).unlink()
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))


def _reserved(size: int) -> str:
    """A file of that size, in memory if there is room: containers are often given little of it."""
    folders = [path for path in ("/dev/shm", tempfile.gettempdir()) if Path(path).is_dir()]  # noqa: S108
    for folder in folders:
        handle, path = tempfile.mkstemp(prefix="tandem-", dir=folder)
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError:
            Path(path).unlink()
            continue
        finally:
            os.close(handle)
        return path
    raise RuntimeError(f"{' and '.join(folders)} have no room for {size / 1024**2:.0f} MB")
