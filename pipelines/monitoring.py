"""What `tandem monitor` and `tandem explain` do: read the service's logs, judge them, and show it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from components.dataset.catalog import load_spec
from components.dataset.spec import DatasetSpec
from components.monitor.logs import feedback, predictions
from components.monitor.model import bundle_of
from components.monitor.quality import by_hour, psi
from components.monitor.skew import skew
from components.run import home

SEED = 7


def judge(dataset: str, log: Path | None, delay: float, recent: float, replay: int) -> dict[str, Any]:
    """The service's answers by hour, drift by feature, and skew of a sample of the rows.

    Args:
        dataset: Name of a data set, or path of its DatasetSpec.
        log: The service's log folder; that of `tandem serve` if None.
        delay: Hours after which an item without a click counts as one that was not clicked.
        recent: Hours whose features are held against the training set of the version that answered last.
        replay: Rows that go through the offline join.

    Raises:
        UserError: nothing is logged there, or the registry has no such version.
    """
    spec = load_spec(dataset)
    folder = _folder(spec, log)
    logged = predictions(folder)
    drawn = np.random.default_rng(SEED).permutation(logged.num_rows)[:replay]
    newest = logged["model_version"][pc.index(logged["at"], pc.max(logged["at"])).as_py()].as_py()
    with bundle_of(spec, newest) as bundle:
        profiles = bundle.profiles()
    return {
        "model_version": newest,
        "hours": by_hour(logged, feedback(folder), timedelta(hours=delay)),
        "psi": psi(logged, profiles, timedelta(hours=recent)),
        "skew": skew(spec, logged.take(np.sort(drawn))) if replay else None,
    }


def rebuild(dataset: str, log: Path | None, request_id: str, item: str | None) -> dict[str, Any]:
    """A served score, rebuilt; see `components.monitor.explain`."""
    from components.monitor.explain import explain

    spec = load_spec(dataset)
    return explain(spec, _folder(spec, log), request_id, item)


def show(found: dict[str, Any]) -> None:
    """Print what `judge` found as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    hours = Table("hour", "requests", "rows", "judged", "clicks", "degraded", "AUC", "log loss", "calibration")
    for line in found["hours"]:
        shares = [_number(line[name]) for name in ("degraded", "auc", "logloss", "calibration")]
        hours.add_row(line["hour"], *(str(line[name]) for name in ("requests", "rows", "judged", "clicks")), *shares)
    console.print(hours)
    compared = (found["skew"] or {}).get("features", {})
    features = Table("feature", "PSI", "compared", "mismatches")
    for name, value in found["psi"].items():
        line = compared.get(name, {})
        features.add_row(name, _number(value), str(line.get("compared", "")), str(line.get("mismatches", "")))
    console.print(features)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _folder(spec: DatasetSpec, log: Path | None) -> Path:
    return log or home() / "served" / spec.identifier
