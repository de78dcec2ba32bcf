"""A small log in the sample's form, with the means to spoil it."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from components.dataset import sample
from components.dataset.catalog import EMBEDDED

ROWS = 1_500
NAMES = ("impressions", "users", "items")


def small_log(folder: Path) -> dict[str, pd.DataFrame]:
    """The last impressions of the sample's most active users, and all users and items."""
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in NAMES}
    log = tables["impressions"]
    active = log["user"].value_counts().index[:400]
    return tables | {"impressions": log[log["user"].isin(active)].tail(ROWS).reset_index(drop=True)}


def sample_spec() -> dict:
    return yaml.safe_load((EMBEDDED / "sample.yaml").read_text())


def write(place: Path, tables: dict[str, pd.DataFrame], spec: dict) -> str:
    """Write the tables beside a spec that names them by relative paths; returns the spec's path."""
    for name, table in tables.items():
        table.to_parquet(place / f"{name}.parquet", coerce_timestamps="us", allow_truncated_timestamps=True)
        if name in spec["sources"]:
            spec["sources"][name]["path"] = f"{name}.parquet"
    path = place / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return str(path)


def made_sample(folder: Path) -> Path:
    return sample.ensure(folder / "sample")


def every(table: pd.DataFrame, share: float) -> np.ndarray:
    """A mask of evenly spread rows, about the given share of them."""
    return (np.arange(len(table)) * 0.618034) % 1 < share
