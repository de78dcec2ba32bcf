"""A served score, rebuilt: from the logged features, and from the offline store at the moment of the request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, USER_KEY, DatasetSpec
from components.monitor.logs import features_of, of_request
from components.monitor.model import bundle_of
from components.monitor.skew import offline, skew
from serving.scorer import Scorer

#: Columns that a row is known by, and that stay whatever is left out.
KEPT = frozenset({USER_KEY, ITEM_KEY, EVENT_TIMESTAMP})


def explain(dataset: str, log: Path, request_id: str, item: str | None = None) -> dict[str, Any]:
    """Rebuild the scores of a logged request with the version of the model that answered it.

    Args:
        dataset: Name of a data set, or path of its DatasetSpec.
        log: The service's log folder.
        request_id: The request's id, as its response has it.
        item: One item of the request; all if None.

    Returns:
        By item, the first of the answer first: the probability that was served; `rebuilt` from the logged features;
        `offline` from the offline join at the request's moment; and `without`, by feature, how far the probability
        falls when that feature is missing. Under 'skew' the features that differ.

    Raises:
        UserError: the request or the item is not in the log, or the registry has no such version.
    """
    rows = of_request(log, request_id)
    if item is not None:
        rows = rows.filter(pc.equal(rows["item_id"], item))
        if not rows.num_rows:
            raise UserError(f"request {request_id} had no item '{item}'")
    rows = rows.sort_by([("probability", "descending")])
    versions = sorted(set(rows["model_version"].to_pylist()))
    with bundle_of(dataset, versions[0]) as bundle:
        told = _explained(bundle.spec, Scorer(bundle), rows)
    said = {"request_id": request_id, "at": rows["at"][0].as_py().isoformat(), "model_version": versions[0]}
    return {**said, "degraded": rows["degraded"][0].as_py(), **told}


def _explained(spec: DatasetSpec, scorer: Scorer, rows: pa.Table) -> dict[str, Any]:
    logged = _columns(scorer, rows, {})
    rebuilt = scorer.probabilities(logged)
    joined = offline(spec, rows["user_id"], rows["item_id"], rows["at"])
    from_store = {name: joined.table[name] for name in joined.views}
    again = scorer.probabilities(_columns(scorer, rows, from_store))
    names = [name for name in logged if name not in KEPT]
    without = {name: rebuilt - scorer.probabilities({**logged, name: _nothing(logged[name])}) for name in names}
    items = [
        {
            "item_id": key,
            "served": served,
            "rebuilt": float(rebuilt[place]),
            "offline": float(again[place]),
            "without": _by_weight({name: float(found[place]) for name, found in without.items()}),
        }
        for place, (key, served) in enumerate(
            zip(rows["item_id"].to_pylist(), rows["probability"].to_pylist(), strict=True)
        )
    ]
    differing = {name: found for name, found in skew(spec, rows)["features"].items() if found["mismatches"]}
    worst = float(np.abs(rebuilt - rows["probability"].to_numpy()).max())
    return {"furthest": worst, "skew": differing, "items": items}


def _columns(scorer: Scorer, rows: pa.Table, instead: Mapping[str, Any]) -> dict[str, Any]:
    """The model's raw columns of logged rows, some of them taken from elsewhere."""
    logged = features_of(rows)
    own = {USER_KEY: rows["user_id"], ITEM_KEY: rows["item_id"], EVENT_TIMESTAMP: rows["at"]}
    return {name: instead.get(name, own.get(name, logged.get(name))) for name in scorer.bundle.vocabulary.columns}


def _nothing(column: Any) -> Any:
    return pa.nulls(len(column), column.type)


def _by_weight(found: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda pair: -abs(pair[1])))
