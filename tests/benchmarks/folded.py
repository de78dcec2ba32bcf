"""CPU milliseconds of the served call for each backbone: whole, and folded into an item's and a request's part.

    python -m tests.benchmarks.folded [--backbones autoint dcn ...] [--candidates 10 100 500] [--json FILE]

Models of the default size with random weights, on fields like MovieLens-1M's: five of the user, three of the item, one
of which has up to six values. One thread; `with parts` includes taking the items' parts out of a table of 4,000 items.
`as written` is the whole model with its layers in the form of their paper: AutoInt's are served merged, folded or not.
CPU time, the mean of the quickest half of the rounds: other work on the machine disturbs it least.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDED = ("autoint", "dcn", "dcnv2", "deepfm", "pnn", "wide_deep")
FIELDS = [
    *(("user", 1, size) for size in (5400, 5, 10, 24, 3300)),
    *(("item", width, size) for width, size in ((1, 3650), (1, 3650), (6, 21))),
]
TABLE = 4000
TARGET = 2.0


def layout() -> Any:
    from components.dataset.layout import FieldSlots, InputLayout

    fields, start, offset = [], 0, 1
    for number, (side, width, size) in enumerate(FIELDS):
        kind = "multi" if width > 1 else "category"
        fields.append(FieldSlots(f"field{number}", side, kind, start, width, offset, size))
        start, offset = start + width, offset + size
    return InputLayout(tuple(fields))


def rows_of_one_request(candidates: int) -> Any:
    draw = np.random.default_rng(candidates)
    ids = np.zeros((candidates, layout().width), dtype=np.int64)
    for slots in layout().fields:
        shape = (1 if slots.side == "user" else candidates, slots.width)
        ids[:, slots.start : slots.stop] = draw.integers(slots.offset, slots.offset + slots.size, shape)
    return ids


def cpu_ms(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return 1e3 * float(np.mean(sorted(taken)[: rounds // 2]))


def as_written(model: Any) -> Any:
    """The model with its layers as their paper has them."""
    from components.models.autoint import InteractingLayer

    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, InteractingLayer):
            layer.merges = False
    return model


def measure(backbone: str, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    import torch

    from components.dataset.layout import CANDIDATE, REQUEST
    from components.dataset.scoring import FoldedModel, WholeModel
    from components.models.config import BackboneConfig
    from components.models.export import export_folded, export_onnx
    from components.models.registry import build_backbone

    torch.manual_seed(0)
    model = build_backbone(backbone, layout(), BackboneConfig()).eval()
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, file) for file in ("written.onnx", "whole.onnx", "items.onnx", "ranker.onnx")]
        export_onnx(as_written(model), paths[0])
        export_onnx(model, paths[1])
        export_folded(model, *paths[2:])
        written, whole, folded = WholeModel(paths[0]), WholeModel(paths[1]), FoldedModel(*paths[2:])
    found = []
    for candidates in sizes:
        ids = rows_of_one_request(candidates)
        request, parts = layout().ids_of(REQUEST, ids[:1]), folded.parts(layout().ids_of(CANDIDATE, ids))
        table = [np.repeat(part[:1], TABLE, axis=0) for part in parts]
        places = np.random.default_rng(0).integers(0, TABLE, candidates)
        ms = {
            "as written": cpu_ms(lambda: written.probabilities(ids), rounds),  # noqa: B023
            "whole": cpu_ms(lambda: whole.probabilities(ids), rounds),  # noqa: B023 - called at once
            "folded": cpu_ms(lambda: folded.probabilities(request, parts), rounds),  # noqa: B023
            "with parts": cpu_ms(
                lambda: folded.probabilities(request, [part.take(places, axis=0) for part in table]),  # noqa: B023
                rounds,
            ),
        }
        gap = float(np.abs(whole.probabilities(ids) - folded.probabilities(request, parts)).max())
        found.append({"backbone": backbone, "candidates": candidates, **ms, "gap": gap})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=FOLDED)
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100, 500])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    rows = []
    print(
        "| backbone | candidates | as written | whole | folded | with parts | times as fast | furthest apart |\n|"
        + "---|" * 8
    )
    for backbone in flags.backbones:
        for row in measure(backbone, flags.candidates, flags.rounds):
            rows.append(row)
            cells = [
                backbone,
                f"{row['candidates']}",
                *(f"{row[key]:.2f}" for key in ("as written", "whole", "folded", "with parts")),
            ]
            print(
                "| " + " | ".join([*cells, f"{row['whole'] / row['folded']:.2f}", f"{row['gap']:.1g}"]) + " |",
                flush=True,
            )
    print(f"target at 500 candidates: {TARGET:g} times")
    print(json.dumps(rows))
    if flags.json:
        flags.json.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
