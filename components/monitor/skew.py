"""The skew sentinel: what the service saw, beside what the offline store says it should have seen at that moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, USER_KEY, DatasetSpec
from components.monitor.logs import features_of
from feature_repo.asof import literal
from feature_repo.context import on_demand_views
from feature_repo.store import open_store

EXAMPLES = 3
#: Feast promises no order of the rows that it gives back.
PLACE = "__place"


@dataclass(frozen=True)
class Offline:
    """Features of some rows as the offline store has them, and the view that each is from."""

    table: pa.Table
    views: Mapping[str, str]


def offline(spec: DatasetSpec, users: Any, items: Any, moments: Any) -> Offline:
    """Join n users and items, each at its own moment, with the features of the shared store's definitions.

    Args:
        spec: The data set.
        users: Their ids, an Arrow column [n].
        items: Their ids, an Arrow column [n].
        moments: Time stamps, an Arrow column [n].
    """
    store = open_store(spec)
    service = store.get_feature_service(f"ctr_{spec.identifier}")
    shown = {projection.name for projection in service.feature_view_projections}
    stored = [view for view in store.list_feature_views() if view.name in shown]
    definitions = [*stored, *(view for view in on_demand_views(store) if view.name in shown)]
    known_only = any(view.batch_source.created_timestamp_column for view in stored)
    with TemporaryDirectory(prefix="tandem-skew-") as folder:
        path = Path(folder) / "rows.parquet"
        places = pa.array(range(len(users)), pa.int64())
        pq.write_table(pa.table({USER_KEY: users, ITEM_KEY: items, EVENT_TIMESTAMP: moments, PLACE: places}), path)
        rows = f"SELECT * FROM read_parquet({literal(path)})"  # noqa: S608 - a literal
        job = store.get_historical_features(rows, service, filter_by_created_timestamp=known_only)
        table = job.to_arrow().sort_by(PLACE)
    return Offline(table, {field.name: view.name for view in definitions for field in view.features})


def skew(spec: DatasetSpec, logged: pa.Table) -> dict[str, Any]:
    """Mismatches by feature between logged rows and the offline join at the moment of each request.

    A feature of a view that the service had to do without is not compared in that request: its default is no skew.

    Returns:
        'rows', and by feature under 'features': rows compared, mismatches, and the first of them as examples.
    """
    joined = offline(spec, logged["user_id"], logged["item_id"], logged["at"])
    served = features_of(logged)
    degraded = [{worse.partition(":")[0] for worse in worses} for worses in logged["degraded"].to_pylist()]
    found = {}
    for name, view in joined.views.items():
        if name in served:
            pairs = list(zip(served[name].to_pylist(), joined.table[name].to_pylist(), strict=True))
            compared = [number for number, without in enumerate(degraded) if view not in without]
            wrong = [number for number in compared if not same(*pairs[number])]
            examples = [_example(logged, number, *pairs[number]) for number in wrong[:EXAMPLES]]
            found[name] = {"compared": len(compared), "mismatches": len(wrong), "examples": examples}
    return {"rows": logged.num_rows, "features": found}


def same(served: Any, joined: Any) -> bool:
    """Whether two values of a feature are the same, floats to the last bit; an empty list is as good as none."""
    if served in ([], None) or joined in ([], None):
        return served in ([], None) and joined in ([], None)
    if isinstance(served, list) and isinstance(joined, list):
        return len(served) == len(joined) and all(map(same, served, joined))
    if isinstance(served, float) and isinstance(joined, float):
        return served.hex() == joined.hex()
    return bool(served == joined)


def _example(logged: pa.Table, number: int, served: Any, joined: Any) -> dict[str, Any]:
    said = {name: logged[name][number].as_py() for name in ("request_id", "user_id", "item_id")}
    return {**said, "served": served, "offline": joined}
