"""From validated tables to a training set: point-in-time features from Feast, then the split."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset.catalog import load_spec
from components.dataset.spec import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    IMPRESSION_ID,
    ITEM_KEY,
    LABEL,
    USER_KEY,
    DatasetSpec,
    Kind,
)
from components.dataset.splits import PARTS, split_table
from components.dataset.training_set import write_training_set
from feature_repo.asof import literal, quoted
from feature_repo.definitions import Definitions, build
from feature_repo.publish import dataset_digest, validated_file
from feature_repo.store import publish, training_store

log = logging.getLogger("tandem.retrieve")


def retrieve(dataset: str, validated: Path, output: Path) -> dict[str, Any]:
    """Join each impression with the features that held at its moment, split the rows and write the training set.

    Args:
        dataset: name of an embedded data set, or path of a DatasetSpec.
        validated: folder of the validate step.
        output: folder of the training set.

    Returns:
        What meta.json says of the training set.

    Raises:
        UserError: the data set is unknown, `validated` is not its validated tables, or a part would be empty.
        RuntimeError: the join lost, doubled or invented rows.
    """
    spec = load_spec(dataset)
    impressions = validated_file(validated, "impressions")
    definitions = build(spec, publish(spec, validated))
    table = joined(spec, definitions, impressions)
    log.info("%d impressions joined with %d features", table.num_rows, len(definitions.features))
    parts = split_table(table, spec)
    meta = _meta(spec, definitions, parts) | {"dataset_digest": dataset_digest(validated)}
    write_training_set(output, spec, parts, meta)
    return meta


def joined(spec: DatasetSpec, definitions: Definitions, impressions: Path) -> pa.Table:
    """The impressions, in the order of their file, with the features that held at each one's time stamp.

    Without time stamps the features are those that held last. A feature of a user or item that its table did not
    know at the time is null; so is the history before the first event.

    Raises:
        RuntimeError: the join lost, doubled or invented rows.
    """
    present = pq.read_schema(impressions).names
    own = [name for name in present if name != CREATED_TIMESTAMP]
    if definitions.views:
        table = _from_feast(spec, definitions, _rows(spec, definitions, impressions, own))
    else:
        table = pq.read_table(impressions, columns=own)
    table = table.select([*own, *definitions.features])
    check_rows(pq.read_table(impressions, columns=[IMPRESSION_ID])[IMPRESSION_ID], table[IMPRESSION_ID])
    return table.cast(_schema(spec, table))


def check_rows(asked: pa.ChunkedArray, got: pa.ChunkedArray) -> None:
    """Compare the impression ids of a retrieval with those it was asked for.

    Raises:
        RuntimeError: they differ in number or as sets.
    """
    if len(got) != len(asked):
        raise RuntimeError(f"point-in-time join: {len(asked)} impressions went in, {len(got)} rows came out")
    wrong = pc.sum(pc.invert(pc.is_in(got, value_set=pc.unique(asked)))).as_py() or 0
    if wrong or pc.count_distinct(got).as_py() != pc.count_distinct(asked).as_py():
        raise RuntimeError(f"point-in-time join: the rows are not those of the impressions ({wrong} unknown ids)")


def _from_feast(spec: DatasetSpec, definitions: Definitions, rows: str) -> pa.Table:
    # Feast leaves the creation time out of account unless told: values entered later would leak into earlier rows.
    known_only = any(view.batch_source.created_timestamp_column for view in definitions.views)
    with training_store(spec, definitions) as store:
        job = store.get_historical_features(
            rows, store.get_feature_service(definitions.service.name), filter_by_created_timestamp=known_only
        )
        return job.to_arrow()


def _rows(spec: DatasetSpec, definitions: Definitions, impressions: Path, columns: list[str]) -> str:
    """DuckDB SQL of the impressions, with one time stamp for all where the data set has none."""
    names = ", ".join(map(quoted, columns))
    if spec.keys.timestamp is None:
        names += f", TIMESTAMPTZ {literal(_latest(definitions))} AS {EVENT_TIMESTAMP}"
    return f"SELECT {names} FROM read_parquet({literal(impressions)})"


def _latest(definitions: Definitions) -> str:
    """The last time stamp of any view, at which every value is known."""
    stamps: list[datetime] = []
    for view in definitions.views:
        source = view.batch_source
        names = [name for name in (source.timestamp_field, source.created_timestamp_column) if name]
        table = pq.read_table(source.path, columns=names)
        stamps += [pc.max(table[name]).as_py() for name in names if table.num_rows]
    return max(stamps, default=datetime(1970, 1, 1, tzinfo=UTC)).isoformat()


def _schema(spec: DatasetSpec, table: pa.Table) -> pa.Schema:
    """The table's columns in the types that a training set has."""
    kinds = {field.table_column: field.kind for field in spec.fields}
    of_kind = {Kind.NUMBER: pa.float64(), Kind.MULTI: pa.list_(pa.string())}
    types = {name: of_kind.get(kind, pa.string()) for name, kind in kinds.items()}
    types |= {IMPRESSION_ID: pa.int64(), LABEL: pa.int8(), EVENT_TIMESTAMP: pa.timestamp("us", tz="UTC")}
    return pa.schema([(field.name, types.get(field.name, field.type)) for field in table.schema])


def _meta(spec: DatasetSpec, definitions: Definitions, parts: dict[str, pa.Table]) -> dict[str, Any]:
    return {
        "dataset": spec.name,
        "rows": {name: parts[name].num_rows for name in PARTS},
        "label_rate": {name: _rounded(pc.mean(parts[name][LABEL]).as_py()) for name in PARTS},
        "cut_offs": _cut_offs(spec, parts),
        "new_users": {name: _new_share(parts, name, USER_KEY) for name in PARTS[1:]},
        "new_items": {name: _new_share(parts, name, ITEM_KEY) for name in PARTS[1:]},
        "feature_service": definitions.service.name,
        "feature_service_hash": definitions.digest,
        "spec_digest": spec.digest,
    }


def _cut_offs(spec: DatasetSpec, parts: dict[str, pa.Table]) -> dict[str, str]:
    """First time stamp of the valid and the test part, where time decides between the parts."""
    if spec.split.by != "time":
        return {}
    firsts = {name: pc.min(parts[name][EVENT_TIMESTAMP]).as_py() for name in PARTS[1:]}
    return {name: first.isoformat() for name, first in firsts.items() if first is not None}


def _new_share(parts: dict[str, pa.Table], part: str, key: str) -> float | None:
    """Share of a part's impressions whose user or item the train part has not."""
    known = pc.is_in(parts[part][key], value_set=pc.unique(parts["train"][key]))
    return _rounded(pc.mean(pc.invert(known)).as_py())


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)
