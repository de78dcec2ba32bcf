"""Seconds and extra memory of one max-sim InfoNCE step (forward and backward) beside the plain einsum.

    python -m tests.benchmarks.similarity [--rows 6400] [--subspaces 4] [--width 32] [--rounds 3] [--json FILE]

Each variant runs in a process of its own, so that its peak is its own; extra memory is the peak of the resident set
during the steps less what was resident before the first. Seconds are the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = {"extra_gb": 1.5, "speed_up": 3.0}


def plain(text: Any, table: Any) -> tuple[Any, Any]:
    """The formula as it stands: N x N x M x M products, and autograd's own memory of them."""
    import torch

    products = torch.einsum("imd,jnd->ijmn", text, table)
    return products.amax(3).mean(2), products.amax(2).mean(2).T


def peak_during(work: Callable[[], None]) -> float:
    """GB by which the resident set rose above its size at the start."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return (peak - before) / 1e9


def one(variant: str, rows: int, subspaces: int, width: int, rounds: int) -> dict[str, float]:
    import torch

    from components.objectives.contrastive import info_nce, max_sim

    torch.manual_seed(0)
    text, table = (torch.randn(rows, subspaces, width).requires_grad_() for _ in "ab")
    similarity = plain if variant == "einsum" else max_sim
    taken, losses = [], []

    def steps() -> None:
        for _ in range(rounds):
            started = time.perf_counter()
            loss = info_nce(*similarity(text, table), 0.7)
            loss.backward()
            taken.append(time.perf_counter() - started)
            losses.append(float(loss.detach()))

    extra = peak_during(steps)
    return {"seconds": statistics.median(taken), "extra_gb": extra, "loss": losses[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--subspaces", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", choices=["blocks", "einsum"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = flags.rows, flags.subspaces, flags.width, flags.rounds
    if flags.variant:
        print(json.dumps(one(flags.variant, *sizes)))
        return
    found = {}
    for variant in ("blocks", "einsum"):
        words = [f"--{name}={size}" for name, size in zip(("rows", "subspaces", "width", "rounds"), sizes, strict=True)]
        command = [sys.executable, "-m", "tests.benchmarks.similarity", *words, "--variant", variant]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[variant] = json.loads(done.stdout)
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
