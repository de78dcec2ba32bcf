"""The proof that what is served holds nothing of the language model (PLM).

Three questions are put to the ONNX file, in which every tensor is looked at wherever it lies (initialisers, constants
of nodes, subgraphs, functions, external files):

1. Does it hold more than the collaborative model alone? A fresh model of the same backbone, settings and input, which
   has never met a PLM, is exported beside it: no larger tensor may have a shape that the fresh one has not.
2. Does a tensor bear the name of a transformer's part?
3. Does a tensor hold the numbers of one of the PLM's, in whatever order?
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.dataset.errors import UserError
from components.models.plm import PlmSpec, locate

log = logging.getLogger("tandem.register")

#: Names that the parts of a transformer have in the libraries that PLMs come from.
PLM_NAMES = (
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "embed_tokens",
    "encoder.layer.",
    "attention.self.",
    "self_attn.",
    "pooler.dense",
    "lm_head",
)
#: Up to here a tensor is a constant of the computation (an index, a shape); all of them together fit in a page.
SMALL = 1000
#: Bytes by which two graphs of the same kind may differ in their names and notes.
SLACK = 65_536
#: Fewer numbers than this may be equal by chance.
TELLING = 16

Array = npt.NDArray[Any]


class PlmFoundError(RuntimeError):
    """The model to be served holds, or may hold, something of the PLM."""


@dataclass(frozen=True)
class Held:
    """A tensor in an ONNX file; `sha256` is over its bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    sha256: str
    values: Array = field(repr=False, compare=False)

    @classmethod
    def of(cls, name: str, values: Array) -> Held:
        """The tensor of these values."""
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        return cls(name, tuple(values.shape), str(values.dtype), int(values.size), digest, values)

    def to_json(self) -> dict[str, Any]:
        """The tensor without its values."""
        shown = {name: value for name, value in asdict(self).items() if name != "values"}
        return {**shown, "shape": list(self.shape)}


@dataclass(frozen=True)
class UsedPlm:
    """The PLM that a candidate was aligned with, and the digest that its embeddings bear."""

    spec: PlmSpec
    digest: str | None


def prove(model: Path, fresh: Path, plm: UsedPlm | None) -> dict[str, Any]:
    """Show that an ONNX model holds nothing of a PLM.

    Args:
        model: The ONNX file to be served.
        fresh: The ONNX file of a fresh collaborative model of the same kind, exported in the same way.
        plm: The PLM that the candidate was trained with; None if with none.

    Returns:
        The proof: what the file holds, tensor by tensor, and what it was compared with.

    Raises:
        PlmFoundError: it may hold something of the PLM; the message names the tensor.
    """
    held, alone = held_tensors(model), held_tensors(fresh)
    weights, reason = _weights_of(plm)
    parts = {name: tuple(part.get_shape()) for name, part in _parts(weights)}
    problems = [*_surplus(held, alone, parts), *_telling_names(held), *_same_numbers(held, weights)]
    more = _besides(model, held) - _besides(fresh, alone)
    if more > SLACK:
        problems.append(f"it has {more} bytes more beside its tensors than the collaborative model")
    if problems:
        raise PlmFoundError(f"{model.name} is not free of the PLM: {'; '.join(problems)}. It may not be served")
    return {
        "plm_free": True,
        "parameters": sum(tensor.count for tensor in held),
        "fresh_parameters": sum(tensor.count for tensor in alone),
        "tensors": [tensor.to_json() for tensor in held],
        "plm": _identity(plm, parts, reason) if plm else None,
    }


def held_tensors(path: Path) -> list[Held]:
    """Every tensor in an ONNX file, in the order of the file."""
    import onnx

    model = onnx.load(path)
    found = list(_graph_tensors(model.graph))
    for function in model.functions:
        found += _node_tensors(function.node)
    return [Held.of(name, values) for name, values in found]


def _besides(path: Path, held: Sequence[Held]) -> int:
    """Bytes of a file that are no tensor's: its graph, names and notes."""
    return path.stat().st_size - sum(tensor.values.nbytes for tensor in held)


def _graph_tensors(graph: Any) -> Iterator[tuple[str, Array]]:
    from onnx.numpy_helper import to_array

    for tensor in graph.initializer:
        yield tensor.name, to_array(tensor)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, to_array(sparse.values)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[tuple[str, Array]]:
    """Tensors among the attributes of nodes, and in the graphs that those hold."""
    from onnx.numpy_helper import to_array

    for node in nodes:
        for attribute in node.attribute:
            name = f"{node.name or node.op_type}.{attribute.name}"
            tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            sparse = [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ]
            for tensor in (*tensors, *(one.values for one in sparse)):
                yield name, to_array(tensor)
            for numbers in (attribute.floats, attribute.ints):
                if len(numbers):
                    yield name, np.array(numbers)
            for strings in (*attribute.strings, *([attribute.s] if attribute.HasField("s") else [])):
                yield name, np.frombuffer(strings, dtype=np.uint8)
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graph_tensors(graph)


def _weights_of(plm: UsedPlm | None) -> tuple[list[Path], str | None]:
    """Files of the PLM's weights; none, and why, where it is not at hand: names and shapes are judged without it."""
    if plm is None:
        return [], None
    try:
        return sorted(locate(plm.spec).glob("*.safetensors")), None
    except UserError as error:
        log.warning("the PLM's numbers cannot be compared: %s", error)
        return [], str(error)


def _parts(weights: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Name and slice of each of the PLM's tensors; nothing is read before the slice is."""
    from safetensors import safe_open

    for file in weights:
        # With torch, because NumPy has no bfloat16.
        with safe_open(file, framework="pt") as parts:
            for name in parts.keys():  # noqa: SIM118  (no mapping)
                yield name, parts.get_slice(name)


def _surplus(held: Sequence[Held], alone: Sequence[Held], parts: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors beyond those of the fresh model; shapes count up to the order of their axes."""
    room = Counter(_form(tensor.shape) for tensor in alone)
    telling = {_form(shape): name for name, shape in parts.items() if len(shape) > 1}
    problems = []
    for tensor in held:
        form = _form(tensor.shape)
        if tensor.count > SMALL and room[form] == 0:
            like = f", the shape of the PLM's {telling[form]}" if form in telling else ""
            problems.append(f"tensor '{tensor.name}' {list(tensor.shape)} is no part of the collaborative model{like}")
        room[form] -= 1
    small, least = (sum(t.count for t in tensors if t.count <= SMALL) for tensors in (held, alone))
    if small > least + SMALL:
        problems.append(f"its small tensors hold {small} numbers, those of the collaborative model {least}")
    return problems


def _form(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def _telling_names(held: Sequence[Held]) -> list[str]:
    return [
        f"tensor '{tensor.name}' bears the name of a transformer's part"
        for tensor in held
        if any(name in tensor.name.lower() for name in PLM_NAMES)
    ]


def _same_numbers(held: Sequence[Held], weights: Sequence[Path]) -> list[str]:
    """Tensors that hold the numbers of one of the PLM's; only those of the same size are read."""
    by_size: dict[int, list[Held]] = {}
    for tensor in held:
        if tensor.count >= TELLING and tensor.values.min() != tensor.values.max():
            by_size.setdefault(tensor.count, []).append(tensor)
    problems = []
    for name, part in _parts(weights):
        rivals = by_size.get(int(np.prod(part.get_shape())), [])
        if rivals:
            numbers = _sorted_digest(part[:].float().numpy())
            same = [tensor for tensor in rivals if _sorted_digest(tensor.values) == numbers]
            problems += [f"tensor '{tensor.name}' holds the numbers of the PLM's {name}" for tensor in same]
    return problems


def _sorted_digest(values: Array) -> str:
    """SHA-256 over the numbers in order of size: the same however a tensor is transposed, cut or shuffled."""
    return hashlib.sha256(np.sort(values.astype(np.float32), axis=None).tobytes()).hexdigest()


def _identity(plm: UsedPlm, parts: Mapping[str, tuple[int, ...]], reason: str | None) -> dict[str, Any]:
    return {
        "name": plm.spec.name,
        "revision": plm.spec.revision,
        "digest": plm.digest,
        "compared": reason is None,
        "reason": reason,
        "tensors": len(parts),
        "parameters": int(sum(np.prod(shape) for shape in parts.values())),
    }
