"""Seconds and extra memory of one max-sim InfoNCE step (forward and backward) beside the plain einsum.

    python -m tests.benchmarks.similarity [--rows 6400] [--subspaces 4] [--width 32] [--rounds 3] [--json FILE]

Seconds and memory as in `steps`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.steps import each_alone, measured

TARGETS = {"extra_gb": 1.5, "speed_up": 3.0}


def plain(text: Any, table: Any) -> tuple[Any, Any]:
    """The formula as it stands: N x N x M x M products, and autograd's own memory of them."""
    import torch

    products = torch.einsum("imd,jnd->ijmn", text, table)
    return products.amax(3).mean(2), products.amax(2).mean(2).T


def one(variant: str, rows: int, subspaces: int, width: int, rounds: int) -> dict[str, float]:
    import torch

    from components.objectives.contrastive import info_nce, max_sim

    torch.manual_seed(0)
    text, table = (torch.randn(rows, subspaces, width).requires_grad_() for _ in "ab")
    similarity = plain if variant == "einsum" else max_sim
    return measured(lambda: info_nce(*similarity(text, table), 0.7), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--subspaces", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", choices=["blocks", "einsum"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = {name: getattr(flags, name) for name in ("rows", "subspaces", "width", "rounds")}
    if flags.variant:
        print(json.dumps(one(flags.variant, **sizes)))
        return
    found = each_alone("tests.benchmarks.similarity", ("blocks", "einsum"), sizes)
    if abs(found["blocks"]["loss"] - found["einsum"]["loss"]) > 1e-4:
        raise SystemExit(f"the two losses differ: {found}")
    ratio = found["einsum"]["seconds"] / found["blocks"]["seconds"]
    title = f"N = {flags.rows}, M = {flags.subspaces}, width {flags.width}"
    print(f"{title:<30}{'seconds':>10}{'extra GB':>10}")
    for variant, line in found.items():
        print(f"{variant:<30}{line['seconds']:>10.2f}{line['extra_gb']:>10.2f}")
    print(f"speed-up {ratio:.1f} (target {TARGETS['speed_up']}), extra memory target {TARGETS['extra_gb']} GB")
    content = {"sizes": sizes, **found, "speed_up": ratio}
    print(json.dumps(content))
    if flags.json:
        flags.json.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
