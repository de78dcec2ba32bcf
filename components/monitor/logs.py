"""The service's logs, read back: predictions with their features, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from components.dataset.errors import UserError
from serving.journal import FEATURE, FEEDBACK, PREDICTIONS


def predictions(folder: Path, since: datetime | None = None) -> pa.Table:
    """Every logged row, the oldest file first; a feature that a version of the model did not read is null.

    Args:
        folder: The service's log folder.
        since: Rows of earlier requests are left in their files.

    Raises:
        UserError: nothing is logged there.
    """
    files = sorted((folder / PREDICTIONS).glob("*.parquet"))
    if not files:
        raise UserError(f"{folder / PREDICTIONS}: no predictions are logged there; raise log_share, or wait a minute")
    wanted = None if since is None else ds.field("at") >= pa.scalar(since)
    tables = [ds.dataset(path).to_table(filter=wanted) for path in files]
    found = pa.concat_tables(tables, promote_options="default")
    if not found.num_rows:
        raise UserError(f"{folder / PREDICTIONS}: no predictions are logged there since {since}")
    return found


def of_request(folder: Path, request_id: str) -> pa.Table:
    """The logged rows of one request.

    Raises:
        UserError: it is not in the log.
    """
    found = predictions(folder)
    found = found.filter(pc.equal(found["request_id"], request_id))
    if not found.num_rows:
        raise UserError(f"request {request_id} is not in the log of {folder}: a sample is logged, a minute later")
    return found


def feedback(folder: Path) -> dict[tuple[str, str], bool]:
    """Whether each reported item of a request, both by id, was clicked; a click is not taken back."""
    clicked: dict[tuple[str, str], bool] = {}
    for event in _events(folder):
        key = event["request_id"], event["item_id"]
        clicked[key] = clicked.get(key, False) or event["clicked"]
    return clicked


def features_of(table: pa.Table) -> dict[str, Any]:
    """The raw feature columns of logged rows by their names in the model."""
    return {name.removeprefix(FEATURE): table[name] for name in table.column_names if name.startswith(FEATURE)}


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / FEEDBACK).glob("*.jsonl")):
        # What follows the last line break is still being written.
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield json.loads(line)
