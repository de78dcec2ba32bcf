"""Seconds and extra memory of the masked words' cross-entropy (forward and backward) beside the whole matrix of logits.

    python -m tests.benchmarks.words [--tokens 8000] [--words 30522] [--width 384] [--rounds 3] [--json FILE]

Seconds and memory as in `steps`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.benchmarks.steps import each_alone, measured


def one(variant: str, tokens: int, words: int, width: int, rounds: int) -> dict[str, float]:
    import torch
    from torch.nn import functional

    from components.objectives.words import word_loss

    torch.manual_seed(0)
    states, rows = (torch.randn(count, width).mul_(0.05).requires_grad_() for count in (tokens, words))
    bias, truth = torch.zeros(words, requires_grad=True), torch.randint(words, (tokens,))
    if variant == "pieces":
        return measured(lambda: word_loss(states, rows, bias, truth) / tokens, rounds)
    return measured(lambda: functional.cross_entropy(functional.linear(states, rows, bias), truth), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8_000)
    parser.add_argument("--words", type=int, default=30_522)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", choices=["pieces", "whole"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = {name: getattr(flags, name) for name in ("tokens", "words", "width", "rounds")}
    if flags.variant:
        print(json.dumps(one(flags.variant, **sizes)))
        return
    found = each_alone("tests.benchmarks.words", ("pieces", "whole"), sizes)
    print("| variant | seconds | extra GB | loss |\n|---|---|---|---|")
    for variant, line in found.items():
        print(f"| {variant} | {line['seconds']:.2f} | {line['extra_gb']:.2f} | {line['loss']:.4f} |")
    print(json.dumps(found))
    if flags.json:
        flags.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
