"""Seconds of GAUC and of the paired bootstrap beside the obvious twins from scikit-learn, in one run.

    python -m tests.benchmarks.metrics [--rows 100000] [--resamples 1000] [--json FILE]

Each figure is the median of three. The peer's bootstrap is timed on 20 resamples and scaled up: a thousand of them
would take minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from components.training.metrics import gauc
from components.training.paired import bootstrap

USERS = 6_040
GAUC_ROWS = 740_000
PEER_RESAMPLES = 20


def seconds(work: Callable[[], Any]) -> float:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def peer_gauc(labels: Any, scores: Any, users: Any) -> float:
    """Mean AUC of the users that have both classes, weighted by their rows."""
    order = np.argsort(users, kind="stable")
    cuts = np.flatnonzero(np.diff(users[order])) + 1
    total = weight = 0.0
    for rows in np.split(order, cuts):
        if 0 < labels[rows].sum() < len(rows):
            total += len(rows) * roc_auc_score(labels[rows], scores[rows])
            weight += len(rows)
    return total / weight


def peer_bootstrap(labels: Any, first: Any, second: Any, resamples: int) -> list[float]:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        rows = draw.integers(0, len(labels), len(labels))
        found.append(roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    draw = np.random.default_rng(1)
    labels, users = draw.integers(0, 2, GAUC_ROWS), draw.integers(0, USERS, GAUC_ROWS)
    scores = draw.random(GAUC_ROWS) + 0.2 * labels
    part = slice(0, flags.rows)
    pair = labels[part], scores[part], draw.random(flags.rows) + 0.2 * labels[part]
    if abs(float(gauc(labels, scores, users) or 0) - peer_gauc(labels, scores, users)) > 1e-9:
        raise SystemExit("the two GAUCs differ")
    scale = flags.resamples / PEER_RESAMPLES
    table = {
        f"GAUC, {GAUC_ROWS} rows, {USERS} users": (
            seconds(lambda: gauc(labels, scores, users)),
            seconds(lambda: peer_gauc(labels, scores, users)),
        ),
        f"paired bootstrap, {flags.rows} rows, {flags.resamples} resamples": (
            seconds(lambda: bootstrap(*pair, resamples=flags.resamples)),
            scale * seconds(lambda: peer_bootstrap(*pair, PEER_RESAMPLES)),
        ),
    }
    print(f"{'seconds':<55}{'tandem':>9}{'scikit-learn':>14}{'ratio':>8}")
    for name, (ours, theirs) in table.items():
        print(f"{name:<55}{ours:>9.3f}{theirs:>14.3f}{theirs / ours:>8.1f}")
    content = {name: {"tandem": ours, "scikit_learn": theirs} for name, (ours, theirs) in table.items()}
    print(json.dumps(content))
    if flags.json:
        flags.json.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
