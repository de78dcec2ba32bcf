"""Seconds and extra memory of the masked words' cross-entropy (forward and backward) beside the whole matrix of logits.

    python -m tests.benchmarks.words [--tokens 8000] [--words 30522] [--width 384] [--rounds 3] [--json FILE]

Each variant runs in a process of its own, as in `similarity`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.similarity import peak_during


def one(variant: str, tokens: int, words: int, width: int, rounds: int) -> dict[str, float]:
    import torch
    from torch.nn import functional

    from components.objectives.words import word_loss

    torch.manual_seed(0)
    states, rows = (torch.randn(count, width).mul_(0.05).requires_grad_() for count in (tokens, words))
    bias, truth = torch.zeros(words, requires_grad=True), torch.randint(words, (tokens,))
    taken, losses = [], []

    def steps() -> None:
        for _ in range(rounds):
            started = time.perf_counter()
            if variant == "pieces":
                loss = word_loss(states, rows, bias, truth) / tokens
            else:
                loss = functional.cross_entropy(functional.linear(states, rows, bias), truth)
            loss.backward()  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - started)
            losses.append(float(loss.detach()))

    extra = peak_during(steps)
    return {"seconds": statistics.median(taken), "extra_gb": extra, "loss": losses[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8_000)
    parser.add_argument("--words", type=int, default=30_522)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", choices=["pieces", "whole"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = flags.tokens, flags.words, flags.width, flags.rounds
    if flags.variant:
        print(json.dumps(one(flags.variant, *sizes)))
        return
    found = {}
    print("| variant | seconds | extra GB | loss |\n|---|---|---|---|")
    for variant in ("pieces", "whole"):
        command = [sys.executable, "-m", "tests.benchmarks.words", "--variant", variant]
        for name, value in zip(("tokens", "words", "width", "rounds"), sizes, strict=True):
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[variant] = line = json.loads(done.stdout.splitlines()[-1])
        print(f"| {variant} | {line['seconds']:.2f} | {line['extra_gb']:.2f} | {line['loss']:.4f} |", flush=True)
    print(json.dumps(found))
    if flags.json:
        flags.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
