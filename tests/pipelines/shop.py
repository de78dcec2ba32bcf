"""A small shop as a user's own files: CSV, JSON lines and one YAML file, no Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml
from typer.testing import CliRunner

from pipelines.cli import app

ROOT = Path(__file__).resolve().parents[2]
SPEC = {
    "name": "shop",
    "sources": {
        "impressions": {"path": "clicks.csv"},
        "users": {"path": "users.csv"},
        "items": {"path": "items.jsonl"},
    },
    "keys": {"user": "customer", "item": "sku", "timestamp": "shown_at"},
    "label": {"column": "clicked"},
    "fields": [
        {"name": "customer_id", "side": "user", "kind": "id"},
        {"name": "gender", "side": "user", "kind": "category", "codes": {"F": "female", "M": "male"}},
        {"name": "product_id", "side": "item", "kind": "id"},
        {"name": "colours", "side": "item", "kind": "multi", "separator": "|"},
        {"name": "price", "side": "item", "kind": "number", "buckets": 4},
        {"name": "title", "side": "item", "kind": "text"},
        {"name": "device", "side": "context", "kind": "category"},
    ],
    "split": {"by": "time", "ratios": [0.7, 0.15, 0.15]},
}
#: When the log begins, and the moment up to which the first run sees it: 900 of its 1,200 rows, ten minutes apart.
BEGIN = 1_700_000_000
CUT = datetime.fromtimestamp(BEGIN + 600 * 900, UTC)
#: Settings that make a run of the shop quick; nothing of the chain is left out.
QUICK = (
    "finetune.epochs=4",
    "finetune.batch_size=256",
    "finetune.threads=1",
    "align.batch_size=128",
    "model.hidden=[16]",
    "model.embedding_dim=8",
    "model.layers=1",
    "evaluate.resamples=50",
    "evaluate.degradation_rows=100",
    "finetune.learning_rate=0.01",
    "gate.min_auc=0.2",
    "gate.max_logloss=2",
    "gate.calibration=[0.1, 10]",
    "gate.slice_floors={}",
)
#: The same as words of the command line.
QUICKLY = tuple(word for assignment in QUICK for word in ("--set", assignment))


def write_shop(folder: Path, rows: int = 1200, users: int = 60, items: int = 40) -> Path:
    """Write the shop's files into a folder; the path of its DatasetSpec.

    Women click on what is red and men on what is blue, mostly.
    """
    draw = np.random.default_rng(7)
    genders = draw.choice(["F", "M"], users)
    colours = draw.choice(["red", "blue"], items)
    (folder / "users.csv").write_text(
        "customer,gender\n" + "".join(f"c{number},{gender}\n" for number, gender in enumerate(genders))
    )
    with (folder / "items.jsonl").open("w") as file:
        for number, colour in enumerate(colours):
            title = f"A {colour} thing, number {number} größe {number % 3}"
            item = {"sku": f"s{number}", "colours": f"{colour}|shiny", "price": 1.5 * number, "title": title}
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    lines = ["customer,sku,shown_at,clicked,device"]
    for second in range(rows):
        user, item = int(draw.integers(users)), int(draw.integers(items))
        liked = (genders[user] == "F") == (colours[item] == "red")
        clicked = int(draw.random() < (0.8 if liked else 0.2))
        lines.append(f"c{user},s{item},{BEGIN + 600 * second},{clicked},{draw.choice(['phone', 'desktop'])}")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    return write_spec(folder)


def write_spec(folder: Path, **changes: object) -> Path:
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}, sort_keys=False))
    return path


def help_of(*command: str) -> str:
    """The help of a command of the command line, without a process of its own.

    Raises:
        AssertionError: there is no such command.
    """
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0, shown.output
    return shown.output


def tandem(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if home is not None:
        environment["TANDEM_HOME"] = str(home)
    command = [sys.executable, "-m", "pipelines.cli", *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
