"""From a trained model to the ONNX file that is served."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_linear_bn_eval

from components.dataset.errors import UserError
from components.models.base import CollaborativeModel
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


def export_onnx(model: CollaborativeModel, path: Path) -> None:
    """Write the model as one ONNX file: `ids` int64 [n, W] -> `probability` float32 [n] = sigmoid(logit), any n.

    The given model is left as it is. Batch norm is folded into the linear layer before it, dropout is gone.

    Raises:
        UserError: the weights are more than one ONNX file can hold (2 GiB).
    """
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if size > MAX_BYTES:
        raise UserError(
            f"the model's weights take {size / 1024**3:.1f} GiB and an ONNX file holds 2; raise 'min_count' of the "
            "largest fields or lower 'model.embedding_dim'"
        )
    scorer = _Scorer(_folded(model))
    # Two rows: a batch of one would be taken for a fixed size.
    example = torch.zeros(2, model.layout.width, dtype=torch.int64)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            scorer,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["ids"],
            output_names=["probability"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    assert program is not None  # noqa: S101  (dynamo=True always gives one)
    # The exporter notes for every node from which line of which file it comes: the served file shall not say where
    # it was made, and equal weights shall give equal bytes.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    with aside(path) as draft:
        program.save(draft, external_data=False)


def _folded(model: CollaborativeModel) -> CollaborativeModel:
    """A copy in eval mode on the CPU, each batch norm folded into the linear layer before it."""
    copied = copy.deepcopy(model).cpu().eval()
    for part in [part for part in copied.modules() if isinstance(part, nn.Sequential)]:
        for place in range(len(part) - 1):
            linear, norm = part[place], part[place + 1]
            if isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                part[place] = fuse_linear_bn_eval(linear, norm)
                part[place + 1] = nn.Identity()
    return copied


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
