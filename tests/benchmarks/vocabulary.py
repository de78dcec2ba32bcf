"""CPU milliseconds of a training step by the size of the vocabulary: tables with sparse gradients beside dense ones.

    python -m tests.benchmarks.vocabulary [--ids 10000 1000000 20000000] [--dim 8] [--batch 2048] [--json FILE]

AutoInt + MLP on two fields of half of the ids each and six small ones, as `finetune` trains it (embeddings above
`SPARSE_FROM` numbers have sparse gradients and the lazy Adam). Each size and kind runs in a process of its own, on one
thread; ids are drawn evenly, so that larger tables are read in more places. `dense` gives every table dense gradients:
its step reads and writes all rows and their moments, and is left out above `--dense-to` ids. Time is the process's own
(CPU time), which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SMALL_FIELD = 50
GROWTH = 1.5


def layout(ids: int) -> Any:
    from components.dataset.layout import FieldSlots, InputLayout

    sizes = [ids // 2, ids // 2] + [SMALL_FIELD] * 6
    fields, offset = [], 1
    for column, size in enumerate(sizes):
        fields.append(FieldSlots(f"field{column}", "user", "category", column, 1, offset, size))
        offset += size
    return InputLayout(tuple(fields))


def one(kind: str, ids: int, dim: int, batch: int, steps: int) -> dict[str, float]:
    import numpy as np
    import torch
    from torch.nn import functional

    from components.models import embedding
    from components.models.config import BackboneConfig
    from components.models.registry import build_backbone
    from components.training.optimizer import LazyAdam

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kind == "dense":
        embedding.SPARSE_FROM = 2**62
    model = build_backbone("autoint", layout(ids), BackboneConfig(embedding_dim=dim)).train()
    optimizer = LazyAdam(model.parameters(), lr=1e-3)
    draw = np.random.default_rng(0)
    taken = []
    for _ in range(steps):
        columns = [draw.integers(slots.offset, slots.offset + slots.size, batch) for slots in model.layout.fields]
        x, labels = torch.from_numpy(np.stack(columns, 1)), torch.from_numpy(draw.random(batch) < 0.5).float()
        began = time.process_time()
        loss = functional.binary_cross_entropy_with_logits(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        taken.append(time.process_time() - began)
    # The first steps make the moments.
    ms = 1e3 * statistics.median(taken[len(taken) // 4 :])
    return {"ms": ms, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, nargs="+", default=[10_000, 1_000_000, 20_000_000])
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--dense-to", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    sizes = flags.dim, flags.batch
    if flags.one:
        print(json.dumps(one(flags.one[0], int(flags.one[1]), *sizes, flags.steps)))
        return
    rows = []
    print(f"{'ids':>12}{'as set, ms':>14}{'peak GB':>10}{'dense, ms':>14}{'peak GB':>10}")
    for ids in flags.ids:
        row: dict[str, Any] = {"ids": ids}
        for kind in ("as set", "dense") if ids <= flags.dense_to else ("as set",):
            words = ["--dim", str(flags.dim), "--batch", str(flags.batch), "--steps", str(flags.steps)]
            command = [sys.executable, "-m", "tests.benchmarks.vocabulary", "--one", kind, str(ids), *words]
            row[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        cells = [
            f"{row[kind][key]:.1f}" if kind in row else "-" for kind in ("as set", "dense") for key in row["as set"]
        ]
        print(f"{ids:>12,}{cells[0]:>14}{cells[1]:>10}{cells[2]:>14}{cells[3]:>10}")
    growth = rows[-1]["as set"]["ms"] / rows[0]["as set"]["ms"]
    print(f"a step on {rows[-1]['ids']:,} ids takes {growth:.2f} times that on {rows[0]['ids']:,} (at most {GROWTH})")
    content = {"dim": flags.dim, "batch": flags.batch, "rows": rows, "growth": growth}
    print(json.dumps(content))
    if flags.json:
        flags.json.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
