"""From validated tables to a training set: point-in-time features from Feast, then the split."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
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
from components.dataset.splits import PARTS, split_window
from components.dataset.training_set import alike, write_training_set
from components.dataset.vocabulary import Vocabulary
from components.dataset.window import Window
from components.run import home
from feature_repo.asof import literal, quoted, scan
from feature_repo.definitions import Definitions, build
from feature_repo.engine import DuckEngine, engine_of, memory_limit
from feature_repo.environment import offline_store
from feature_repo.publish import dataset_digest, validated_file
from feature_repo.store import publish, training_store

log = logging.getLogger("tandem.retrieve")
#: SQL types of a training set's columns; all others are words.
TYPES = {IMPRESSION_ID: "BIGINT", LABEL: "TINYINT", EVENT_TIMESTAMP: "TIMESTAMPTZ"}
KINDS = {Kind.NUMBER: "DOUBLE", Kind.MULTI: "VARCHAR[]"}


def retrieve(
    dataset: str, validated: Path, output: Path, window: Window | None = None, known: Path | None = None
) -> dict[str, Any]:
    """Join each impression with the features that held at its moment, split the rows and write the training set.

    Features, histories and counts come from the whole log, whatever the window: they hold what was known at each row.

    Args:
        dataset: name of an embedded data set, or path of a DatasetSpec.
        validated: folder of the validate step.
        output: folder of the training set.
        window: The impressions that the training set is made of; all by default.
        known: File of the vocabulary that is to be grown, for a warm start.

    Returns:
        What meta.json says of the training set.

    Raises:
        UserError: the data set is unknown, `validated` is not its validated tables, a part would be empty, the window
            holds no row or nothing new, or the known vocabulary is of other fields.
        RuntimeError: the join lost, doubled or invented rows.
    """
    spec = load_spec(dataset)
    impressions = validated_file(validated, "impressions")
    limits = window or Window()
    times = _times(impressions)
    span = _span(spec, times, limits)
    definitions = build(spec, publish(spec, validated))
    offline = offline_store(spec)
    home().mkdir(parents=True, exist_ok=True)
    # Where Spark's executors may write: a step's own output may lie where only this machine sees it.
    with TemporaryDirectory(prefix=".joined-", dir=home()) as folder:
        file = Path(folder, "joined.parquet")
        if not limits.everything:
            impressions = _within(memory_limit(offline), impressions, limits, Path(folder, "window.parquet"))
        write_joined(spec, definitions, impressions, file)
        log.info("%d impressions joined with %d features", _count(file), len(definitions.features))
        names = _names(definitions, impressions)
        keys = [name for name in (IMPRESSION_ID, USER_KEY, ITEM_KEY, LABEL, EVENT_TIMESTAMP) if name in names]
        # The rows themselves never are in memory all at once; what decides on their part is.
        slim = split_window(pq.read_table(file, columns=keys), spec, limits.start)
        meta = _meta(spec, definitions, slim) | {"dataset_digest": dataset_digest(validated)}
        if span:
            # What is not divided by time is learnt from end to end.
            learnt = meta["cut_offs"].get("valid", span["end"])
            meta["window"] = {**span, **_known(times, datetime.fromisoformat(learnt)), "learnt_until": learnt}
            meta["window"]["late"] = _late(times, limits)
        parts = {name: Path(folder, f"{name}.parquet") for name in slim}
        for name, path in parts.items():
            engine_of(offline).write(_part(spec, file, names, _membership(spec, slim, name, Path(folder))), path)
        write_training_set(output, spec, parts, meta, Vocabulary.load(known) if known else None)
    return meta


def _times(impressions: Path) -> pa.Table:
    """When each impression was, and when it arrived, as far as the log says."""
    said = [name for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP) if name in pq.read_schema(impressions).names]
    return pq.read_table(impressions, columns=said)


def _span(spec: DatasetSpec, times: pa.Table, window: Window) -> dict[str, str]:
    """First moment and end (exclusive) of the impressions in the window; empty for a log without time stamps.

    Those that came late are dated before the first moment, where the window has a start.

    Raises:
        UserError: none lies in it, or none is newer than what an earlier run has seen.
    """
    if spec.keys.timestamp is None:
        if not window.everything:
            raise UserError(
                "a window needs time stamps; name their column under 'keys.timestamp', or write window: all"
            )
        return {}
    moments = times[EVENT_TIMESTAMP]
    newest = pc.max(moments).as_py()
    if window.seen is not None and newest < window.seen:
        raise UserError(f"nothing new: the newest impression is of {newest.isoformat()}, and earlier runs have seen it")
    inside = pc.min_max(moments.filter(window.holds(moments))).as_py()
    if inside["min"] is None:
        first, last = pc.min(moments).as_py(), newest
        raise UserError(f"the window holds no impression; they lie between {first.isoformat()} and {last.isoformat()}")
    end = window.end or inside["max"] + timedelta(microseconds=1)
    return {"start": inside["min"].isoformat(), "end": end.isoformat()}


def _known(times: pa.Table, learnt: datetime) -> dict[str, Any]:
    """By what a later run finds what came late: when the newest row arrived, and the rows dated before a moment."""
    moments = times[EVENT_TIMESTAMP]
    found: dict[str, Any] = {"rows_before": pc.sum(pc.less(moments, pa.scalar(learnt, moments.type))).as_py() or 0}
    newest = pc.max(times[CREATED_TIMESTAMP]).as_py() if CREATED_TIMESTAMP in times.column_names else None
    return found | ({"arrived_until": newest.isoformat()} if newest else {})


def _late(times: pa.Table, window: Window) -> int:
    """How many impressions dated before the window came after the run that it follows; says what becomes of them.

    Where the log does not say when a row arrived they are counted by how many more there are now, so that rows that
    were removed meanwhile hide as many.
    """
    if window.start is None:
        return 0
    moments = times[EVENT_TIMESTAMP]
    dated = pc.less(moments, pa.scalar(window.start, moments.type))
    if window.arrived is not None and CREATED_TIMESTAMP in times.column_names:
        late = pc.sum(pc.and_(dated, window.holds(moments, times[CREATED_TIMESTAMP]))).as_py() or 0
        log.info("%d impressions dated before the window have come late, and are learnt", late)
        return int(late)
    late = max(0, (pc.sum(dated).as_py() or 0) - window.before) if window.before is not None else 0
    if late:
        log.warning(
            "%d impressions dated before the window have come late, and are not learnt; name the column that says when "
            "a row arrived under sources.impressions.created, or run once with an earlier START or window: all",
            late,
        )
    return int(late)


def _within(memory: str, impressions: Path, window: Window, file: Path) -> Path:
    """The impressions of the window in a file of their own, in the order in which they stand."""
    bounds = {">=": window.start, "<": window.end}
    said = [f"{EVENT_TIMESTAMP} {sign} TIMESTAMPTZ {literal(at.isoformat())}" for sign, at in bounds.items() if at]
    if window.start and window.arrived and CREATED_TIMESTAMP in pq.read_schema(impressions).names:
        said[0] = f"({said[0]} OR {CREATED_TIMESTAMP} > TIMESTAMPTZ {literal(window.arrived.isoformat())})"
    rows = f"SELECT * FROM read_parquet({literal(impressions)}) WHERE {' AND '.join(said)} ORDER BY {IMPRESSION_ID}"
    DuckEngine(memory).write(rows, file)
    return file


def _own(impressions: Path) -> list[str]:
    """Columns of the impressions that a training set has."""
    return [name for name in pq.read_schema(impressions).names if name != CREATED_TIMESTAMP]


def _names(definitions: Definitions, impressions: Path) -> list[str]:
    """Columns of a training set."""
    return [*_own(impressions), *definitions.features]


def _count(file: Path) -> int:
    count: int = ds.dataset(file).count_rows()
    return count


def _membership(spec: DatasetSpec, parts: Mapping[str, pa.Table], name: str, folder: Path) -> str:
    """SQL of the condition on which a joined row is of a part: what `split_table` has decided, written down.

    A split by time has no moment in two parts, so that the first moments of the parts say it all; any other one is
    said by the numbers of the impressions, in a file.
    """
    if spec.split.by != "time":
        file = folder / f"{name}-rows.parquet"
        pq.write_table(parts[name].select([IMPRESSION_ID]), file)
        return f"{IMPRESSION_ID} IN (SELECT {IMPRESSION_ID} FROM {scan(file)})"
    firsts = [f"TIMESTAMPTZ {literal(pc.min(parts[part][EVENT_TIMESTAMP]).as_py().isoformat())}" for part in PARTS]
    first, after = PARTS.index(name), PARTS.index(name) + 1
    until = f" AND {EVENT_TIMESTAMP} < {firsts[after]}" if after < len(PARTS) else ""
    return f"{EVENT_TIMESTAMP} >= {firsts[first]}{until}"


def _part(spec: DatasetSpec, file: Path, names: Sequence[str], membership: str) -> str:
    """SQL of the rows of a part in the order of the split: by time where that decides, else as in the log's file."""
    order = [EVENT_TIMESTAMP, IMPRESSION_ID] if spec.split.by == "time" else [IMPRESSION_ID]
    kinds = {field.table_column: KINDS.get(field.kind, "VARCHAR") for field in (*spec.fields, *spec.moment_fields())}
    types = kinds | TYPES
    columns = [f"{quoted(name)}::{types[name]} AS {quoted(name)}" if name in types else quoted(name) for name in names]
    return f"SELECT {', '.join(columns)} FROM {scan(file)} WHERE {membership} ORDER BY {', '.join(order)}"


def joined(spec: DatasetSpec, definitions: Definitions, impressions: Path) -> pa.Table:
    """All impressions as the parts of a training set hold them, in the order of their numbers."""
    with TemporaryDirectory(prefix="tandem-joined-") as folder:
        file, rows = Path(folder, "joined.parquet"), Path(folder, "rows.parquet")
        write_joined(spec, definitions, impressions, file)
        engine_of(offline_store(spec)).write(_part(spec, file, _names(definitions, impressions), "TRUE"), rows)
        return alike(pq.read_table(rows)).sort_by(IMPRESSION_ID)


def write_joined(spec: DatasetSpec, definitions: Definitions, impressions: Path, file: Path) -> None:
    """Write the impressions, in any order, with the features that held at each one's time stamp.

    Without time stamps the features are those that held last. A feature of a user or item that its table did not
    know at the time is null; so is the history before the first event.

    Raises:
        RuntimeError: the join lost, doubled or invented rows.
    """
    own = _own(impressions)
    if definitions.features:
        _from_feast(spec, definitions, _rows(spec, definitions, impressions, own), file)
    else:
        pq.write_table(pq.read_table(impressions, columns=own), file)
    ids = (pq.read_table(path, columns=[IMPRESSION_ID])[IMPRESSION_ID] for path in (impressions, file))
    check_rows(*ids)


def check_rows(asked: pa.ChunkedArray, got: pa.ChunkedArray) -> None:
    """Compare the impression ids of a retrieval with those it was asked for.

    Raises:
        RuntimeError: they are not the same ids, each as often.
    """
    if len(got) != len(asked):
        raise RuntimeError(f"point-in-time join: {len(asked)} impressions went in, {len(got)} rows came out")
    if not np.array_equal(np.sort(asked.to_numpy()), np.sort(got.to_numpy())):
        wrong = pc.sum(pc.invert(pc.is_in(got, value_set=pc.unique(asked)))).as_py() or 0
        raise RuntimeError(f"point-in-time join: the rows are not those of the impressions ({wrong} unknown ids)")


def _from_feast(spec: DatasetSpec, definitions: Definitions, rows: str, file: Path) -> None:
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    # Feast leaves the creation time out of account unless told: values entered later would leak into earlier rows.
    known_only = any(view.batch_source.created_timestamp_column for view in definitions.views)
    with training_store(spec, definitions) as store:
        job = store.get_historical_features(
            rows, store.get_feature_service(definitions.service.name), filter_by_created_timestamp=known_only
        )
        job.persist(SavedDatasetFileStorage(path=str(file)))


def _rows(spec: DatasetSpec, definitions: Definitions, impressions: Path, columns: list[str]) -> str:
    """DuckDB SQL of the impressions, with one time stamp for all where the data set has none."""
    names = ", ".join(map(quoted, columns))
    if spec.keys.timestamp is None:
        names += f", TIMESTAMPTZ {literal(_latest(definitions))} AS {EVENT_TIMESTAMP}"
    return f"SELECT {names} FROM {scan(impressions)}"


def _latest(definitions: Definitions) -> str:
    """The last time stamp of any view, at which every value is known."""
    stamps: list[datetime] = []
    for view in definitions.views:
        source = view.batch_source
        names = [name for name in (source.timestamp_field, source.created_timestamp_column) if name]
        table = pq.read_table(source.path, columns=names)
        stamps += [pc.max(table[name]).as_py() for name in names if table.num_rows]
    return max(stamps, default=datetime(1970, 1, 1, tzinfo=UTC)).isoformat()


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
