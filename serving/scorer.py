"""From raw feature columns to click probabilities: the bundle's own vocabulary, then one ONNX Runtime call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from components.dataset.bundle import Bundle, BundleError
from components.dataset.layout import UNKNOWN
from components.dataset.spec import Kind

TOLERANCE = 1e-5


class Scorer:
    """The collaborative model of a bundle.

    Raises:
        BundleError: the model does not give the golden rows the probabilities that are stored with them.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        options = onnxruntime.SessionOptions()
        # Threads that spin while they wait slow everything else in the process.
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(bundle.model_path), options, ["CPUExecutionProvider"])
        self._check_golden()

    def _check_golden(self) -> None:
        golden = self.bundle.golden()
        columns = {name: golden.column(name) for name in golden.column_names if name != "probability"}
        expected = golden.column("probability").to_numpy()
        worst = float(np.abs(self.probabilities(columns) - expected).max(initial=0.0))
        if not worst <= TOLERANCE:
            raise BundleError(
                f"{self.bundle.path}: golden rows are off by {worst:.2g}; the model is not what was tested"
            )

    def probabilities(self, columns: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Click probabilities [n] of n rows of raw feature columns."""
        ids = self.bundle.encode(columns)
        found: npt.NDArray[np.float32] = self.session.run(["probability"], {"ids": ids})[0]
        return found

    def cold(self, side: str, keys: Sequence[str]) -> list[bool]:
        """Whether each key of a side is one that the model never saw; False where it reads no key."""
        name = next((field.name for field in self.bundle.spec.model_fields_of(side) if field.kind is Kind.ID), None)
        if name is None:
            return [False] * len(keys)
        codes = self.bundle.vocabulary.field(name).encode(list(keys))
        return [bool(code == UNKNOWN) for code in codes]
