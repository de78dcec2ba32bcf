"""FLOPs and time of scoring one user's candidates: SRP4CTR folded and unfolded, and the same head without a sequence.

    python -m tests.benchmarks.folded_sequence [--length 50] [--rounds 30] [--json FILE]

The layout is MovieLens-1M's (8 fields, 6 attributes per event). FLOPs are those that torch counts (two for each
multiplication and addition of a matrix product). Times are medians of ONNX Runtime on one thread, for files exported
as the service has them. The head alone is wide_deep: the same embedding and MLP, and a first-order weight per field.
Folded is `items` and `ranker` together, nothing kept from earlier requests; `ranker` alone is what a request costs
once its items' parts are known.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Work = Callable[[], Any]
CANDIDATES = (1, 10, 100, 1000)
TARGETS = {"flops": 1.6, "time": 3.0}
FIELDS = (
    *(("user_id", "user", 1, 6041), ("gender", "user", 1, 5), ("age", "user", 1, 10), ("occupation", "user", 1, 24)),
    *(("zip", "user", 1, 3442), ("movie_id", "item", 1, 3710), ("title", "item", 1, 3710), ("genres", "item", 6, 21)),
)
EVENTS = (("movie_id", None), ("genres", None), ("rating", 7), ("label", 5), ("gap", 34), ("hour", 27))


def movielens(length: int, events: Sequence[tuple[str, int | None]] = EVENTS) -> Any:
    """A layout as the vocabulary of MovieLens-1M gives it."""
    from components.dataset.layout import FieldSlots, InputLayout

    fields, start, offset = [], 0, 1
    for name, side, width, size in FIELDS:
        fields.append(FieldSlots(name, side, "category", start, width, offset, size))
        start, offset = start + width, offset + size
    shared = {slots.name: slots for slots in fields}
    history = []
    for name, own in events:
        size, first = (shared[name].size, shared[name].offset) if own is None else (own, offset)
        history.append(FieldSlots(f"history_{name}", "user", "category", start, length, first, size))
        start, offset = start + length, offset + (own or 0)
    return InputLayout(tuple(fields), tuple(history))


def request(layout: Any, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids [count, W] of one user, whose history is full, and random items."""
    random = np.random.default_rng(0)
    ids = np.zeros((count, layout.width), dtype=np.int64)
    for slots in (*layout.fields, *layout.history):
        rows = 1 if slots.side == "user" else count
        drawn = random.integers(slots.offset + 3, slots.offset + slots.size, (rows, slots.width))
        ids[:, slots.start : slots.stop] = drawn
    return ids


def flops(work: Work) -> int:
    """What torch counts while some work is done."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    # Of attention torch counts the forms that GPUs run, and not a CPU's.
    def of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: of_attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        work()
    return int(counter.get_total_flops())


def seconds(work: Work, rounds: int) -> float:
    """Median over the rounds, after three that do not count."""
    taken = []
    for number in range(rounds + 3):
        started = time.perf_counter()
        work()
        if number >= 3:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(name: str, layout: Any, folder: Path, rounds: int, **config: Any) -> dict[str, dict[int, dict[str, float]]]:
    """FLOPs and milliseconds by form (whole, folded, ranker) and number of candidates; `config` are model settings."""
    import torch

    from components.dataset.scoring import FoldedModel, WholeModel
    from components.models.config import BackboneConfig
    from components.models.export import export_folded, export_onnx, without_batch_norm
    from components.models.registry import build_backbone

    torch.manual_seed(0)
    model = without_batch_norm(build_backbone(name, layout, BackboneConfig(**config)).eval()).requires_grad_(False)
    folding = model.fold()
    assert folding is not None
    folding.eval().requires_grad_(False)
    export_onnx(model, folder / "whole.onnx")
    export_folded(model, folder / "items.onnx", folder / "ranker.onnx")
    whole, folded = WholeModel(folder / "whole.onnx"), FoldedModel(folder / "items.onnx", folder / "ranker.onnx")
    found: dict[str, dict[int, dict[str, float]]] = {"whole": {}, "folded": {}, "ranker": {}}
    for count in CANDIDATES:
        for form, (counted, timed) in _forms(model, folding, whole, folded, request(model.layout, count)).items():
            found[form][count] = {"mflops": flops(counted) / 1e6, "ms": seconds(timed, rounds) * 1e3}
    return found


def _forms(model: Any, folding: Any, whole: Any, folded: Any, ids: Any) -> dict[str, tuple[Work, Work]]:
    """What is counted (torch) and what is timed (ONNX Runtime) by form."""
    import torch

    from components.dataset.layout import CANDIDATE, REQUEST

    of_item, of_request = model.layout.ids_of(CANDIDATE, ids), model.layout.ids_of(REQUEST, ids[:1])
    rows, items, asked = (torch.from_numpy(given) for given in (ids, of_item, of_request))
    parts, known = folding.item(items), folded.parts(of_item)
    return {
        "whole": (lambda: model(rows), lambda: whole.probabilities(ids)),
        "folded": (
            lambda: folding(asked, *folding.item(items)),
            lambda: folded.probabilities(of_request, folded.parts(of_item)),
        ),
        "ranker": (lambda: folding(asked, *parts), lambda: folded.probabilities(of_request, known)),
    }


def table(found: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| model, form | " + " | ".join(f"{count}" for count in CANDIDATES) + " |", "|---" * 5 + "|"]
    for name, forms in found.items():
        for form, by_count in forms.items():
            cells = [f"{by_count[count]['mflops']:.2f} MFLOP, {by_count[count]['ms']:.3f} ms" for count in CANDIDATES]
            lines.append(f"| {name}, {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table and the ratios to the head alone, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    layout, found = movielens(options.length), {}
    for name in ("wide_deep", "srp4ctr"):
        with TemporaryDirectory() as folder:
            found[name] = measure(name, layout, Path(folder), options.rounds)
    print(table(found))
    for form in ("folded", "ranker"):
        for count in CANDIDATES:
            for against in ("whole", form):
                ours, base = found["srp4ctr"][form][count], found["wide_deep"][against][count]
                ratios = {"flops": ours["mflops"] / base["mflops"], "time": ours["ms"] / base["ms"]}
                said = ", ".join(f"{name} x{value:.2f}" for name, value in ratios.items())
                met = all(ratios[name] <= limit for name, limit in TARGETS.items())
                mark = f" (targets {'met' if met else 'missed'})" if count == 100 else ""
                print(f"{count} candidates: srp4ctr {form} over the head {against}: {said}{mark}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
