"""ONNX Runtime on a bundle's files: whole rows scored at once, or many items of one request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

#: Numbers of rows at which two calls are compared, and how often each is made; its quickest time counts.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
ROUNDS = 5


def open_session(path: Path) -> Any:
    """A session of one ONNX file on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Threads that spin while they wait slow everything else in the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def stoppable() -> Any:
    """Options of one call: with their `terminate` set it fails, after the operator that it is at."""
    options = onnxruntime.RunOptions()
    # To be stopped is no error to write down.
    options.log_severity_level = 4
    return options


class WholeModel:
    """The model in one file."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)

    def probabilities(self, ids: Ids, options: Any = None) -> Floats:
        """Click probabilities [n] of ids [n, layout.width]; with `options` as made by `stoppable`."""
        return cast(Floats, self._session.run(["probability"], {"ids": ids}, options)[0])


class FoldedModel:
    """The model in two files: what depends on the item alone is computed once per item."""

    def __init__(self, items: Path, ranker: Path) -> None:
        self._items, self._ranker = open_session(items), open_session(ranker)
        self._names = [output.name for output in self._items.get_outputs()]

    def parts(self, ids: Ids, options: Any = None) -> list[Floats]:
        """What the ranker needs of items, each [n, ...], for ids [n, layout.of(CANDIDATE).width]."""
        return cast(list[Floats], self._items.run(self._names, {"ids": ids}, options))

    def probabilities(self, ids: Ids, parts: Sequence[Floats], options: Any = None) -> Floats:
        """Click probabilities [n] of a request's ids [1, layout.of(REQUEST).width] and n items' parts."""
        feeds = {"ids": ids, **dict(zip(self._names, parts, strict=True))}
        return cast(Floats, self._ranker.run(["probability"], feeds, options)[0])


def crossing(
    small: Callable[[int], object], large: Callable[[int], object], clock: Callable[[], float] = time.thread_time
) -> int:
    """The number of rows from which on `large` takes no longer than `small`, as measured here and now.

    Both are taken to grow evenly between two of SIZES. What is quicker at two sizes in a row stays so; where `large`
    is never quicker, it is used for more than the largest size all the same.

    Args:
        small: A call for few rows, given their number.
        large: A call for many rows, given their number.
        clock: Seconds of this thread's processor: other work on the machine is not to decide.
    """
    before, found = (0, 0.0), 0
    for size in SIZES:
        gain = quickest(small, size, clock) - quickest(large, size, clock)
        if gain >= 0 and found:
            return found
        found = _between(*before, size, gain) if gain >= 0 else 0
        before = size, gain
    return found or SIZES[-1] + 1


def _between(low: int, loss: float, high: int, gain: float) -> int:
    """Where a line through (low, loss <= 0) and (high, gain >= 0) crosses zero, rounded up; 1 at least."""
    return high if gain == loss else max(1, math.ceil(low + (high - low) * loss / (loss - gain)))


def quickest(
    call: Callable[[int], object], size: int, clock: Callable[[], float] = time.thread_time, rounds: int = ROUNDS
) -> float:
    """The least of the clock's seconds that a call for so many rows takes, of several."""
    taken = []
    for _ in range(rounds):
        began = clock()
        call(size)
        taken.append(clock() - began)
    return min(taken)
