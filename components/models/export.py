"""From a trained model to the ONNX file that is served."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_linear_bn_eval

from components.dataset.errors import UserError
from components.dataset.layout import CANDIDATE, REQUEST
from components.models.base import CollaborativeModel
from components.models.folding import Folding, Serves
from components.run import aside

OPSET = 18
#: A protobuf message ends at 2 GiB, and the bundle is one file.
MAX_BYTES = 2 * 1024**3 - 2**20


class _Scorer(nn.Module):
    """Ids in, probability out."""

    def __init__(self, model: CollaborativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return torch.sigmoid(self.model(ids))


class _Items(nn.Module):
    """Items' ids in, their parts out."""

    def __init__(self, folding: Folding) -> None:
        super().__init__()
        self.folding = folding

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return self.folding.item(ids)


class _Ranker(nn.Module):
    """A request's ids and items' parts in, probability out."""

    def __init__(self, folding: Folding) -> None:
        super().__init__()
        self.folding = folding

    def forward(self, ids: Tensor, parts: list[Tensor]) -> Tensor:
        return torch.sigmoid(self.folding(ids, *parts))


def export_onnx(model: CollaborativeModel, path: Path) -> None:
    """Write the model as one ONNX file: `ids` int64 [n, W] -> `probability` float32 [n] = sigmoid(logit), any n.

    The given model is left as it is. Batch norm is folded into the linear layer before it, dropout is gone.

    Raises:
        UserError: the weights are more than one ONNX file can hold (2 GiB).
    """
    _refuse_beyond_one_file(model)
    scorer = _Scorer(_merged(without_batch_norm(model)))
    # Two rows: a batch of one would be taken for a fixed size.
    example = torch.zeros(2, model.layout.width, dtype=torch.int64)
    _write(scorer, (example,), ({0: torch.export.Dim("n")},), ["ids"], ["probability"], path)


def export_folded(model: CollaborativeModel, items: Path, ranker: Path) -> bool:
    """Write the model as two ONNX files where its backbone allows it, and say whether it does.

    The first one is called once per item: `ids` int64 [n, W of the items' layout] -> `part_0`, ... float32 [n, ...].
    The second one once per request: `ids` int64 [1, W of the request's layout] and the parts -> `probability`
    float32 [n], as `export_onnx` gives for the same fields.

    Raises:
        UserError: the weights are more than one ONNX file can hold (2 GiB).
    """
    _refuse_beyond_one_file(model)
    sides = {slots.side in CANDIDATE for slots in model.layout.fields}
    folding = without_batch_norm(model).fold() if len(sides) > 1 else None
    if folding is None:
        return False
    folding.eval()
    ids = torch.zeros(2, model.layout.of(CANDIDATE).width, dtype=torch.int64)
    with torch.no_grad():
        parts = list(folding.item(ids))
    names = [f"part_{number}" for number in range(len(parts))]
    count = {0: torch.export.Dim("n")}
    _write(_Items(folding), (ids,), (count,), ["ids"], names, items)
    request = torch.zeros(1, model.layout.of(REQUEST).width, dtype=torch.int64)
    shapes: tuple[Any, ...] = ({}, [count] * len(parts))
    _write(_Ranker(folding), (request, parts), shapes, ["ids", *names], ["probability"], ranker)
    return True


def _refuse_beyond_one_file(model: CollaborativeModel) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if size > MAX_BYTES:
        raise UserError(
            f"the model's weights take {size / 1024**3:.1f} GiB and an ONNX file holds 2; raise 'min_count' of the "
            "largest fields or lower 'model.embedding_dim'"
        )


def _write(
    module: nn.Module,
    example: tuple[Any, ...],
    shapes: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    path: Path,
) -> None:
    """Write a module in eval mode as one ONNX file."""
    _share_translations()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None  # noqa: S101  (dynamo=True always gives one)
    # The exporter notes for every node from which line of which file it comes: the served file shall not say where
    # it was made, and equal weights shall give equal bytes.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    with aside(path) as draft:
        program.save(draft, external_data=False)


def without_batch_norm(model: CollaborativeModel) -> CollaborativeModel:
    """A copy in eval mode on the CPU, each batch norm folded into the linear layer before it."""
    copied = copy.deepcopy(model).cpu().eval()
    for part in [part for part in copied.modules() if isinstance(part, nn.Sequential)]:
        for place in range(len(part) - 1):
            linear, norm = part[place], part[place + 1]
            if isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                part[place] = fuse_linear_bn_eval(linear, norm)
                part[place + 1] = nn.Identity()
    return copied


def _merged(model: CollaborativeModel) -> CollaborativeModel:
    """The model with each layer that has a form of its own for serving in that form."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Serves):
                setattr(parent, name, child.served())
    return model


@cache
def _share_translations() -> None:
    """Let all exports use one table of what each operator becomes.

    To make it is a third of an export's time, and the exporter, which only reads it, has no setting for it.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
