"""One worker's forward pass: padded token ids to one vector per text, on a CPU core or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from components.dataset.errors import UserError
from components.encode.batches import Ints
from components.models.plm import PlmSpec, Pooling, load_plm, locate, pool

Vectors = npt.NDArray[np.float32]
#: What an allocator says when memory is short, besides torch's own error of that name; the last is oneDNN's word.
SHORT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "could not create a primitive",
)


class Forward(Protocol):
    """Ids int64 [n, tokens] and mask [n, tokens], None where nothing is padded, to vectors float32 [n, dim]."""

    def __call__(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64] | None) -> Vectors:
        """Run the PLM."""
        ...


class TorchForward:
    """The PLM in torch: fp32 on a CPU, bf16 on a GPU; attention is torch's fused one (SDPA) in both."""

    def __init__(self, model: Any, pooling: Pooling, device: str = "cpu", bf16: bool = False) -> None:
        import torch

        self.pooling: Pooling = pooling
        self.device = device
        self.model = model.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32)

    def __call__(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64] | None) -> Vectors:
        """Run the PLM and pool its states."""
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(ids).to(self.device)
            weights = None if mask is None else torch.from_numpy(mask).to(self.device)
            output = self.model(input_ids=inputs, attention_mask=weights)
            states = output if isinstance(output, torch.Tensor) else output.last_hidden_state
            vectors = pool(states.float(), weights, self.pooling)
            return np.asarray(vectors.cpu().numpy())


def load_model(spec: PlmSpec) -> Any:
    """The PLM as a torch module of input_ids and attention_mask, in the quickest way that gives the same states.

    Raises:
        UserError: as `load_plm`.
    """
    from components.models.bert import Bert, is_plain_bert

    folder = locate(spec)
    return Bert(folder).eval() if is_plain_bert(spec, folder) else load_plm(spec).model


class OnnxForward:
    """The quantised PLM in ONNX Runtime, pooling included."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait slow down every other worker (onnxruntime#13808).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64] | None) -> Vectors:
        """Run the graph."""
        mask = np.ones_like(ids) if mask is None else mask
        outputs: list[Any] = self.session.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(outputs[0], dtype=np.float32)


@dataclass
class Encoder:
    """Encodes batches; when memory is short it halves the batch, remembers that, and goes on."""

    forward: Forward
    halved: Callable[[int], None]
    most: int | None = None

    def __call__(self, texts: Sequence[Ints]) -> Vectors:
        """Vectors float32 [n, dim] of n texts, given as token ids.

        Raises:
            UserError: one text alone does not fit into memory, or the PLM gives no number for a text.
        """
        size = len(texts) * max(len(ids) for ids in texts)
        if self.most is None or size <= self.most or len(texts) == 1:
            vectors = self._tried(texts, size)
            if vectors is not None:
                return vectors
            _release()
        middle = len(texts) // 2
        return np.concatenate([self(texts[:middle]), self(texts[middle:])])

    def _tried(self, texts: Sequence[Ints], size: int) -> Vectors | None:
        """Vectors; None where they do not fit. What failed is freed on return: its error holds on to every tensor."""
        try:
            vectors = self.forward(*padded(texts))
        except Exception as error:
            if not is_short_of_memory(error):
                raise
            if len(texts) == 1:
                message = f"a text of {size} tokens does not fit into memory; lower encode.plm.max_length"
                raise UserError(message) from None
            self.most = max(1, size // 2)
            self.halved(self.most)
            return None
        if not np.isfinite(vectors).all():
            raise UserError("the PLM gives NaN or infinite numbers for a text; write encode.precision: fp32")
        return vectors


def padded(texts: Sequence[Ints]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Ids [n, longest] padded with 0 on the right, and the mask; no mask where all texts are of one length."""
    lengths = np.array([len(ids) for ids in texts])
    if (lengths == lengths[0]).all():
        return np.stack(texts).astype(np.int64), None
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    ids[mask.astype(bool)] = np.concatenate(texts)
    return ids, mask


def is_short_of_memory(error: Exception) -> bool:
    """Whether an error is an allocator's: torch on CPU or GPU, numpy, or ONNX Runtime."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in words for phrase in SHORT_OF_MEMORY)


def _release() -> None:
    """Hand torch's cached GPU memory back, so that the smaller batch finds it in one piece."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
