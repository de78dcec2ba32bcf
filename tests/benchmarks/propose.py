"""Seconds and memory of `tandem init` on a generated log: python -m tests.benchmarks.propose [ROWS]."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

PARTS = 20
USERS, ITEMS = 2_000_000, 200_000
START = 1_700_000_000


def write_log(path: Path, rows: int) -> None:
    """A CSV log of six columns, three impressions a second."""
    draw = np.random.default_rng(0)
    size = rows // PARTS
    columns = ["user_id", "item_id", "ts", "clicked", "device", "position"]
    with pa.csv.CSVWriter(
        path, pa.schema([(name, pa.string() if name == "device" else pa.int64()) for name in columns])
    ) as file:
        for part in range(PARTS):
            moments = START + np.arange(part * size, (part + 1) * size) // 3
            devices = pa.array(["phone", "tablet", "desktop"]).take(pa.array(draw.integers(0, 3, size)))
            values = [draw.integers(0, USERS, size), draw.integers(0, ITEMS, size), moments, draw.integers(0, 2, size)]
            file.write_table(pa.table([*map(pa.array, values), devices, pa.array(draw.integers(0, 30, size))], columns))


def main(rows: int = 20_000_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        write_log(log, rows)
        started = time.perf_counter()
        command = [sys.executable, "-m", "pipelines.cli", "init", "big", "--impressions", str(log)]
        subprocess.run([*command, "--output", f"{folder}/big.yaml"], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"{rows:,} rows, {log.stat().st_size / 1e9:.2f} GB: {seconds:.1f} s, {peak:.2f} GB at most")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
