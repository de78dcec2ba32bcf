"""What `similarity` and `words` have in common: steps of a loss, timed and weighed, each variant in its own process.

A variant's peak is then its own. Extra memory is the peak of the resident set during the steps less what was resident
before the first; seconds are the median over the rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


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


def measured(loss_of: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of a step forward and backward, its extra memory, and the first loss."""
    taken, losses = [], []

    def steps() -> None:
        for _ in range(rounds):
            started = time.perf_counter()
            loss = loss_of()
            loss.backward()
            taken.append(time.perf_counter() - started)
            losses.append(float(loss.detach()))

    extra = peak_during(steps)
    return {"seconds": statistics.median(taken), "extra_gb": extra, "loss": losses[0]}


def each_alone(module: str, variants: Sequence[str], sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """What a benchmark prints of each variant when it is called with `--variant` and these flags."""
    words = [f"--{name}={size}" for name, size in sizes.items()]
    found = {}
    for variant in variants:
        command = [sys.executable, "-m", module, *words, "--variant", variant]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[variant] = json.loads(done.stdout)
    return found
