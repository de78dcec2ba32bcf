"""The PLM quantised to int8 for ONNX Runtime on a CPU, and the proof that it still says the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from components.dataset.errors import UserError
from components.encode.batches import Ints, Tokeniser
from components.encode.forward import OnnxForward, TorchForward, Vectors, padded
from components.models.plm import Plm, PlmSpec, Pooling, load_plm, locate, pool
from components.run import aside, home

log = logging.getLogger("tandem.encode")

#: Part of the file's name: raise it when the same PLM would be quantised otherwise.
VERSION = 1
#: Least cosine between a text's int8 and fp32 vector, over the probe.
LEAST_COSINE = 0.99
PROBE = 64
#: ONNX keeps a graph and its weights in one protobuf, which holds less than 2 GiB.
MOST_BYTES = 1_900_000_000


def quantised(plm: Plm, pooling: Pooling) -> Path:
    """The quantised PLM as an ONNX file below the working directory, made on first use.

    Weights per channel; activations dynamically, and by token in the feed-forward layers, where a few tokens are
    many times larger than the others (see `_RowScaled`).

    Raises:
        UserError: the PLM cannot be exported.
    """
    path = home() / "plm" / f"{plm.digest[:40]}-int8-{VERSION}.onnx"
    if path.is_file():
        return path
    size = sum(weights.numel() * weights.element_size() for weights in plm.model.parameters())
    if size > MOST_BYTES:
        raise UserError(f"encode.precision: '{plm.name}' is too large for int8; write fp32, or use a GPU")
    log.info("quantising %s to int8, once", plm.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as draft:
        plain = draft.with_suffix(".fp32")
        try:
            _export(plm, pooling, plain)
            _quantise(plain, draft)
        finally:
            plain.unlink(missing_ok=True)
    return path


def _export(plm: Plm, pooling: Pooling, path: Path) -> None:
    """Write the PLM with its pooling as an fp32 ONNX file: input_ids and attention_mask to vectors."""
    import torch

    class Pooled(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return pool(states, attention_mask, pooling)

    # Two texts, one of them padded: sizes of 1 would be taken for constants, and an all-ones mask for no mask.
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens", max=32768)
    shapes = {"input_ids": {0: texts, 1: tokens}, "attention_mask": {0: texts, 1: tokens}}
    inputs = {"input_ids": mask.clone(), "attention_mask": mask}
    with _row_scaled(plm.model) as model, _quiet():
        try:
            torch.onnx.export(
                Pooled(model),
                kwargs=inputs,
                f=str(path),
                dynamic_shapes=shapes,
                output_names=["vectors"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            line = str(error).strip().splitlines()[0]
            raise UserError(f"encode.precision: '{plm.name}' has no int8 form ({line}); write fp32") from error


def _quantise(plain: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Seven bits a weight: products of eight overflow the 16-bit sums of CPUs without VNNI.
    options = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
    with _quiet():
        quantize_dynamic(str(plain), str(path), op_types_to_quantize=["MatMul"], **options)


@contextmanager
def _row_scaled(model: Any) -> Iterator[Any]:
    """The model with each feed-forward layer scaled by row while it is exported."""
    import torch

    class RowScaled(torch.nn.Module):
        """W x = r W (x / r) with r the largest magnitude in x: one scale a token, where quantising has one a batch.

        Without it the tokens with outliers (separators, mostly) would leave the others a few of the 256 levels.
        """

        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Any) -> Any:
            scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-6)
            product = torch.nn.functional.linear(x / scale, self.linear.weight) * scale
            return product if self.linear.bias is None else product + self.linear.bias

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    feed_forward = [(name, layer) for name, layer in layers if layer.in_features != layer.out_features]
    for name, layer in feed_forward:
        model.set_submodule(name, RowScaled(layer))
    try:
        yield model
    finally:
        for name, layer in feed_forward:
            model.set_submodule(name, layer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and the quantiser's notes out of the step's log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def prepare_int8(spec: PlmSpec, sample: Sequence[str], threads: int) -> Path:
    """The quantised PLM, after its vectors of the sample were held against those of fp32.

    Raises:
        UserError: a text's cosine is below LEAST_COSINE, or the PLM cannot be quantised.
    """
    import torch

    torch.set_num_threads(threads)
    plm = load_plm(spec)
    path = quantised(plm, spec.pooling)
    texts = Tokeniser.of(spec, locate(spec), budget=0).ids(sample)
    exact = _one_by_one(TorchForward(plm.model, spec.pooling), texts)
    rough = _one_by_one(OnnxForward(path, threads), texts)
    found = cosines(exact, rough)
    log.info("int8 against fp32 on %d texts: cosine %.4f at least, %.4f on average", len(texts), *_ends(found))
    if not found.min() >= LEAST_COSINE:
        raise UserError(
            f"encode.precision: int8 changes this PLM's vectors too much (cosine to fp32 {found.min():.4f} on a "
            f"probe of {len(texts)} texts, {LEAST_COSINE} wanted); write fp32"
        )
    return path


def _one_by_one(forward: TorchForward | OnnxForward, texts: Sequence[Ints]) -> Vectors:
    """Batches of eight: int8 is probed as it is used, several texts a batch."""
    return np.concatenate([forward(*padded(texts[i : i + 8])) for i in range(0, len(texts), 8)])


def cosines(first: Vectors, second: Vectors) -> Any:
    """Cosine [n] of each row of two matrices [n, dim]; 1 where both rows are zero."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.where(norms > 0, (first * second).sum(axis=1) / np.maximum(norms, 1e-12), 1.0)


def _ends(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.mean())


def spread(texts: Sequence[str], count: int = PROBE) -> list[str]:
    """Some of the texts, evenly spaced."""
    rows = np.unique(np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int))
    return [texts[row] for row in rows]
