"""ONNX Runtime on a bundle's files: whole rows scored at once, or many items of one request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def open_session(path: Path) -> Any:
    """A session of one ONNX file on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Threads that spin while they wait slow everything else in the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class WholeModel:
    """The model in one file."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)

    def probabilities(self, ids: Ids) -> Floats:
        """Click probabilities [n] of ids [n, layout.width]."""
        return cast(Floats, self._session.run(["probability"], {"ids": ids})[0])


class FoldedModel:
    """The model in two files: what depends on the item alone is computed once per item."""

    def __init__(self, items: Path, ranker: Path) -> None:
        self._items, self._ranker = open_session(items), open_session(ranker)
        self._names = [output.name for output in self._items.get_outputs()]

    def parts(self, ids: Ids) -> list[Floats]:
        """What the ranker needs of items, each [n, ...], for ids [n, layout.of(CANDIDATE).width]."""
        return cast(list[Floats], self._items.run(self._names, {"ids": ids}))

    def probabilities(self, ids: Ids, parts: Sequence[Floats]) -> Floats:
        """Click probabilities [n] of a request's ids [1, layout.of(REQUEST).width] and n items' parts."""
        feeds = {"ids": ids, **dict(zip(self._names, parts, strict=True))}
        return cast(Floats, self._ranker.run(["probability"], feeds)[0])
