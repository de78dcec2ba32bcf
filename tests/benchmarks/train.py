"""Training AutoInt on MovieLens-1M's rows beside DeepCTR-Torch, FuxiCTR and a plain PyTorch loop.

    python -m tests.benchmarks.train --training-set DIR [--batch 1024 4096] [--rows 0] [--cores 4] [--json FILE]

DIR is what the retrieve step wrote. Every system trains the same model (embedding 32, 3 layers, 2 heads, MLP
256-128-64 with batch norm, Adam at 1e-3) for one epoch on the same rows; of a field with several values the first
counts, so that all read the same eight columns. Each runs on one core, and on all: the others in one process with a
thread for each core, ours in as many processes of one thread. `plain PyTorch` is the model as one would write it down,
in the loop of PyTorch's own tutorial. DeepCTR-Torch and FuxiCTR get virtual environments under --venvs.

Samples per CPU second stand beside samples per second: other work on the machine disturbs them least.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

PEERS = {"deepctr": ["deepctr-torch==0.3.0", "requests"], "fuxictr": ["fuxictr==2.3.10"]}
SHOWN = {"deepctr": "DeepCTR-Torch 0.3.0", "fuxictr": "FuxiCTR 2.3.10", "plain": "plain PyTorch", "ours": "ours"}
#: Our samples/s over the fastest other's on as many cores: on one, and on all.
ON_ONE, ON_ALL = 1.5, 3.0
VALID_ROWS = 2000


def prepare(training_set: Path, folder: Path, rows: int) -> None:
    """Write arrays.npz: codes [n, F] by field from 0 on, one column each."""
    from components.dataset.training_set import TrainingSet

    data = TrainingSet.open(training_set)
    fields = data.layout.fields
    content: dict[str, Any] = {"sizes": np.array([slots.size for slots in fields])}
    for part in ("train", "test"):
        arrays = data.arrays(part)
        ids = np.stack([arrays.ids[:, slots.start] - slots.offset for slots in fields], axis=1).astype(np.int64)
        content |= {f"{part}_ids": ids, f"{part}_labels": arrays.labels.astype(np.float32)}
    if rows:
        # The last ones: the rows lie in the order of time.
        content |= {name: content[name][-rows:] for name in ("train_ids", "train_labels")}
    np.savez(folder / "arrays.npz", **content)


def interpreter(name: str, folder: Path) -> str:
    """The Python of a peer's own environment, made where it is not yet."""
    python = folder / name / "bin" / "python"
    if not (folder / name / "made").is_file():
        import torch

        venv.create(folder / name, with_pip=True, clear=True)
        version = torch.__version__.partition("+")[0]
        subprocess.run([str(python), "-m", "pip", "install", "-q", f"torch=={version}", *PEERS[name]], check=True)
        (folder / name / "made").touch()
    return str(python)


def model_of(sizes: Any) -> Any:
    from components.dataset.layout import FieldSlots, InputLayout
    from components.models.config import BackboneConfig
    from components.models.registry import build_backbone

    offsets = 1 + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    columns = enumerate(zip(offsets, sizes, strict=True))
    fields = [FieldSlots(f"f{i}", "user", "category", i, 1, int(offset), int(size)) for i, (offset, size) in columns]
    return build_backbone("autoint", InputLayout(tuple(fields)), BackboneConfig()), offsets


def textbook(sizes: Any) -> Any:
    """AutoInt + MLP in PyTorch's own layers, and the ids' offsets."""
    import torch
    from torch import nn

    from components.models.config import BackboneConfig

    config, fields = BackboneConfig(), len(sizes)

    class Interacting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = config.embedding_dim, config.attention_dim
            self.query, self.key, self.value, self.residual = (nn.Linear(*widths, bias=False) for _ in range(4))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            parts = (part(rows) for part in (self.query, self.key, self.value))
            query, key, value = (part.reshape(*rows.shape[:2], config.heads, -1).transpose(1, 2) for part in parts)
            weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
            return torch.relu((weights @ value).transpose(1, 2).flatten(2) + self.residual(rows))

    class AutoInt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1 + int(sizes.sum()), config.embedding_dim)
            nn.init.normal_(self.table.weight, std=0.01)
            self.attention = nn.Sequential(*(Interacting() for _ in range(config.layers)))
            layers: list[nn.Module] = []
            for inner, outer in itertools.pairwise((fields * config.embedding_dim, *config.hidden)):
                layers += [nn.Linear(inner, outer), nn.BatchNorm1d(outer), nn.ReLU(), nn.Dropout(config.dropout)]
            self.deep = nn.Sequential(*layers)
            self.head = nn.Linear(fields * config.attention_dim + config.hidden[-1], 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.table(x)
            met = torch.cat([self.attention(rows).flatten(1), self.deep(rows.flatten(1))], dim=1)
            return self.head(met).squeeze(1)

    return AutoInt(), 1 + np.concatenate([[0], np.cumsum(sizes)[:-1]])


def ours(folder: Path, batch: int, epochs: int) -> dict[str, float]:
    """The project's own loop; in a group of processes each of them calls this."""
    import torch

    from components.dataset.training_set import SplitArrays
    from components.training.group import Group
    from components.training.loop import fit, predict
    from components.training.metrics import auc
    from components.training.seeds import seed_everything
    from components.training.settings import LoopSettings

    seed_everything(1)
    arrays = np.load(folder / "arrays.npz")
    model, offsets = model_of(arrays["sizes"])
    parts = {part: (arrays[f"{part}_ids"] + offsets, arrays[f"{part}_labels"]) for part in ("train", "test")}
    valid = tuple(values[:VALID_ROWS] for values in parts["test"])
    nobody = np.zeros(0, np.int64)
    train_rows, valid_rows = (SplitArrays(ids, labels, *[nobody] * 4) for ids, labels in (parts["train"], valid))
    settings = LoopSettings(batch_size=batch, epochs=epochs, patience=epochs)
    group = Group.join()
    # What measuring and a first optimizer import is not the training's; the others make theirs before the clock starts.
    torch.optim.Adam(model.parameters())
    auc(valid[1], np.linspace(0, 1, VALID_ROWS))
    began, spent = time.perf_counter(), time.process_time()
    fit(model, train_rows, valid_rows, settings, seed=1)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    total = float(group.sum(torch.tensor([spent], dtype=torch.float64)))
    found = {"seconds": seconds, "cpu_seconds": total, "peak_gb": _peak()}
    if group.first:
        np.save(folder / "ours.npy", predict(model, parts["test"][0]))
        (folder / "ours.json").write_text(json.dumps(found))
    return found


def plain(folder: Path, batch: int, epochs: int) -> dict[str, float]:
    """The model as its paper has it, a DataLoader, Adam, and nothing else."""
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(1)
    arrays = np.load(folder / "arrays.npz")
    model, offsets = textbook(arrays["sizes"])
    ids, labels = torch.from_numpy(arrays["train_ids"] + offsets), torch.from_numpy(arrays["train_labels"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    began, spent = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        for x, y in DataLoader(TensorDataset(ids, labels), batch, shuffle=True):
            optimizer.zero_grad()
            functional.binary_cross_entropy_with_logits(model(x), y).backward()
            optimizer.step()
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent, "peak_gb": _peak()}
    model.eval()
    with torch.no_grad():
        parts = torch.from_numpy(arrays["test_ids"] + offsets).split(8192)
        np.save(folder / "plain.npy", torch.cat([torch.sigmoid(model(part)) for part in parts]).numpy())
    return found


def _peak() -> float:
    """GB; of this program alone, which `ru_maxrss` after a fork is not."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == "VmHWM:") * 1024 / 1e9


def together(folder: Path, batch: int, epochs: int, processes: int) -> dict[str, float]:
    """`ours` in several processes, as finetune starts them."""
    from components.training.launch import train_together

    # By its name, not as a part of `__main__`: the workers import it.
    from tests.benchmarks import train

    train_together(train.ours, processes, 1, folder=folder, batch=batch, epochs=epochs)
    found: dict[str, float] = json.loads((folder / "ours.json").read_text())
    return found


def measure(folder: Path, venvs: Path, batch: int, epochs: int, cores: int) -> list[dict[str, Any]]:
    from components.training.metrics import auc

    arrays = np.load(folder / "arrays.npz")
    words = [str(folder), str(batch), str(epochs)]
    peer, own = str(Path(__file__).with_name("train_peers.py")), [sys.executable, "-m", "tests.benchmarks.train"]
    commands = {name: [interpreter(name, venvs), peer, name, *words] for name in PEERS}
    commands["plain"] = [*own, "--one", "plain", *words]
    runs = [(name, number, number, command) for number in sorted({1, cores}) for name, command in commands.items()]
    runs += [("ours", number, 1, [*own, "--one", str(number), *words]) for number in sorted({1, cores})]
    rows = []
    for name, number, threads, command in runs:
        env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-3000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        samples = epochs * len(arrays["train_labels"])
        scores = np.load(folder / f"{name}.npy")
        rates = {"per_s": samples / found["seconds"], "per_cpu_s": samples / found["cpu_seconds"]}
        row = {
            "system": SHOWN[name],
            "cores": number,
            "batch": batch,
            **found,
            **rates,
            "auc": auc(arrays["test_labels"], scores),
        }
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    cells = [row["system"], str(row["cores"]), str(row["batch"]), f"{row['per_s']:,.0f}", f"{row['per_cpu_s']:,.0f}"]
    return "| " + " | ".join([*cells, f"{row['peak_gb']:.2f}", f"{row['auc']:.4f}"]) + " |"


def judge(rows: list[dict[str, Any]]) -> None:
    """Our samples/s against the fastest other's on as many cores, by batch."""
    kinds = itertools.groupby(sorted(rows, key=_kind), _kind)
    for (batch, cores), group in kinds:
        ours_and_others = {row["system"]: row for row in group}
        mine = ours_and_others.pop(SHOWN["ours"])
        for unit, named in (("per_s", "second"), ("per_cpu_s", "CPU second")):
            times = mine[unit] / max(row[unit] for row in ours_and_others.values())
            target = f" (target {ON_ALL if cores > 1 else ON_ONE:g})" if unit == "per_s" else ""
            print(f"batch {batch}, cores {cores}, samples a {named}: {times:.2f} times the fastest other{target}")


def _kind(row: dict[str, Any]) -> tuple[int, int]:
    return row["batch"], row["cores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-set", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rows", type=int, default=0, help="Last rows of the train part; all if 0.")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()) / "tandem-train-peers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        way, folder, *numbers = flags.one
        batch, epochs = (int(number) for number in numbers)
        if way == "plain":
            print(json.dumps(plain(Path(folder), batch, epochs)))
        elif way == "1":
            print(json.dumps(ours(Path(folder), batch, epochs)))
        else:
            print(json.dumps(together(Path(folder), batch, epochs, int(way))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        prepare(flags.training_set, Path(name), flags.rows)
        print(
            "| system | cores | batch | samples/s | samples/CPU s | peak GB | test AUC |\n|---|---|---|---|---|---|---|"
        )
        for batch in flags.batch:
            rows += measure(Path(name), flags.venvs, batch, flags.epochs, flags.cores)
    judge(rows)
    print(json.dumps(rows))
    if flags.json:
        flags.json.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
