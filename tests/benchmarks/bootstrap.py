"""Seconds of the paired bootstrap of an AUC difference, beside a loop that resamples rows and calls scikit-learn.

    python -m tests.benchmarks.bootstrap [--rows 100000] [--resamples 1000] [--peer-resamples 20] [--json FILE]

Prints a table and writes the same as JSON. The peer runs fewer resamples; its seconds are scaled up.
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from components.training.paired import bootstrap, delong

LIMIT_SECONDS = 20.0


def draw(rows, decimals=None):
    """Labels and the scores of two models of about AUC 0.7, [rows] each."""
    random = np.random.default_rng(1)
    truth = random.normal(size=rows)
    labels = (random.random(rows) < 1 / (1 + np.exp(-truth))).astype(int)
    scores = [1 / (1 + np.exp(-(truth + random.normal(0, spread, rows)))) for spread in (0.5, 0.52)]
    return labels, *(score if decimals is None else score.round(decimals) for score in scores)


def naive(labels, first, second, resamples):
    """Interval of the difference by drawing rows and sorting them anew each time."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(resamples):
        rows = random.integers(0, len(labels), len(labels))
        found.append(roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows]))
    return np.quantile(found, [0.025, 0.975])


def seconds(work, *arguments, **options):
    started = time.perf_counter()
    work(*arguments, **options)
    return time.perf_counter() - started


def measure(rows, resamples, peer_resamples):
    plain, tied = draw(rows), draw(rows, decimals=2)
    users = np.random.default_rng(2).integers(0, max(rows // 20, 1), rows)
    peer = seconds(naive, *plain, peer_resamples) * resamples / peer_resamples
    timed = {
        "bootstrap of rows": min(seconds(bootstrap, *plain, resamples=resamples) for _ in range(3)),
        "bootstrap of rows, tied scores": min(seconds(bootstrap, *tied, resamples=resamples) for _ in range(3)),
        "bootstrap of users": min(seconds(bootstrap, *plain, resamples=resamples, clusters=users) for _ in range(3)),
        "DeLong": min(seconds(delong, *plain) for _ in range(3)),
        f"naive loop, scikit-learn ({peer_resamples} resamples, scaled)": peer,
    }
    return {
        "rows": rows,
        "resamples": resamples,
        "machine": f"{platform.machine()}, one thread",
        "seconds": {name: round(value, 3) for name, value in timed.items()},
        "times_faster_than_naive": round(peer / timed["bootstrap of rows"], 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "limit_seconds": LIMIT_SECONDS,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--peer-resamples", type=int, default=20)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    result = measure(options.rows, options.resamples, options.peer_resamples)
    print(f"paired AUC difference, {result['rows']:,} rows, {result['resamples']:,} resamples\n")
    for name, value in result["seconds"].items():
        print(f"{name:<55}{value:>10.3f} s")
    print(f"\n{result['times_faster_than_naive']} times the naive loop; peak {result['peak_memory_mib']} MiB")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["seconds"]["bootstrap of rows"] <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    raise SystemExit(main())
