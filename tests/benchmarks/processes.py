"""Finetune's speed in several processes beside one with several threads, on the rows of a training set.

`python -m tests.benchmarks.processes TRAINING_SET [--batch 2048] [--ways 1x1 1x4 2x1 4x1]`, a way being processes x
threads. Prints the rows a second of each way's second epoch, validation included, and its loss and AUC there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from components.dataset.training_set import TrainingSet
from components.finetune.settings import FinetuneSettings
from components.finetune.step import finetune
from components.models.config import BackboneConfig

EPOCHS = 2


def measured(training_set: Path, output: Path, batch: int, processes: int, threads: int) -> dict[str, float]:
    """The second epoch of a way."""
    settings = FinetuneSettings(epochs=EPOCHS, batch_size=batch, processes=processes, threads=threads)
    # Without dropout, whose masks depend on the number of processes, the losses can be compared.
    model = BackboneConfig(dropout=0.0)
    curve = finetune(training_set, output, "collaborative", "autoint", model, settings, 1, None)
    last: dict[str, float] = curve["history"][-1]
    return last


def main() -> None:
    """Measure each way in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("training_set", type=Path)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--ways", nargs="+", default=["1x1", "1x4", "2x1", "4x1"])
    given = parser.parse_args()
    rows = TrainingSet.open(given.training_set).meta["rows"]["train"]
    print(f"{rows:,} rows, batch {given.batch}\n\n| processes x threads | rows/s | loss | AUC |\n|---|---|---|---|")
    for way in given.ways:
        processes, threads = map(int, way.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            line = measured(given.training_set, Path(folder) / "out", given.batch, processes, threads)
        figures = f"{rows / line['seconds']:,.0f} | {line['train_loss']:.5f} | {line['valid_auc']:.4f}"
        print(f"| {way} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
