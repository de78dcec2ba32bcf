"""What the next run would do, before it does it: its rows, its texts, what it would take, whom it has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.prompts import text_hash
from components.dataset.sources import entity_tables, window_rows
from components.dataset.spec import CREATED_TIMESTAMP, EVENT_TIMESTAMP, IMPRESSION_ID, DatasetSpec
from components.dataset.splits import split_window
from components.dataset.window import Window
from components.run import home
from pipelines.settings import ALIGNED, RunSettings

Content = dict[str, Any]
#: Later than any row: profiles of a log without time stamps are the last ones.
EVER = datetime(2262, 1, 1, tzinfo=UTC)
#: Rows whose texts are written at a time.
ROWS = 131_072


@dataclass(frozen=True)
class Plan:
    """The next run.

    window: 'asked', 'start', 'end' (ISO 8601, None is open). rows: by part, and 'total'. stops: why it would stop at
    once; None if it would not. texts: 'total', 'hits', 'misses' of the encoding cache, and 'exact', which is False
    where they are bounds: total and misses at most, hits at least; None where the method encodes none. estimate:
    'steps' by name with seconds and GPU-seconds, 'minutes', 'gpu_minutes' and the 'runs' that it rests on; None without
    an earlier run. champion: 'version', 'run_id', 'metrics' on its own test part; None where there is none. warm_start:
    the version that training begins with. cached_steps: what Kubeflow would take from its own cache.
    """

    dataset: str
    window: Content
    rows: Content
    stops: str | None
    texts: Content | None
    estimate: Content | None
    champion: Content | None
    warm_start: str | None
    cached_steps: list[str]

    def to_json(self) -> Content:
        """The plan as plain JSON content."""
        return asdict(self)


def plan(settings: RunSettings) -> Plan:
    """Find out what a run with these settings would do now. Nothing is written.

    Raises:
        UserError: the data set or a setting is wrong.
    """
    from components.registry.continuation import window_of
    from pipelines.local import prepare

    dataset = prepare(settings.dataset)
    spec, window = load_spec(dataset), window_of(dataset, settings.window)
    if not window.everything and spec.keys.timestamp is None:
        raise UserError("a window needs time stamps; name their column under 'keys.timestamp' or write window: all")
    found = window_rows(spec, window)
    stops = _nothing_to_learn(found, window)
    rows = {"total": found.num_rows} if stops else _parts(spec, found, window)
    texts = _texts(spec, found, settings) if settings.method in ALIGNED and not stops else None
    champion = _champion(dataset)
    return Plan(
        dataset=spec.name,
        window={"asked": settings.window, "start": _said(window.start), "end": _said(window.end)},
        rows=rows,
        stops=stops,
        texts=texts,
        estimate=None if stops else _estimate(dataset, settings, found.num_rows, texts),
        champion=champion,
        warm_start=champion["version"] if champion and settings.warm_start else None,
        cached_steps=_cached(settings),
    )


def _said(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _nothing_to_learn(rows: pa.Table, window: Window) -> str | None:
    if rows.num_rows == 0:
        return "the window holds no impression"
    if window.seen is not None and pc.max(rows[EVENT_TIMESTAMP]).as_py() < window.seen:
        return "nothing new: earlier runs have seen the newest impression"
    return None


def _parts(spec: DatasetSpec, rows: pa.Table, window: Window) -> Content:
    """How many rows each part would have; which ones does not matter to their numbers."""
    numbered = rows.append_column(IMPRESSION_ID, pa.array(range(rows.num_rows), pa.int64()))
    parts = split_window(numbered, spec, window.start)
    return {**{name: part.num_rows for name, part in parts.items()}, "total": rows.num_rows}


def _texts(spec: DatasetSpec, rows: pa.Table, settings: RunSettings) -> Content:
    """The different texts of the window, and which of them the encoding cache has."""
    from components.encode.cache import EncodingCache
    from components.encode.step import describe

    if settings.prompt.granularity != "entity":
        # A text for each impression, with its history: to know it takes what the retrieve step does.
        return {"total": rows.num_rows, "hits": 0, "misses": rows.num_rows, "exact": False}
    hashes = _entity_hashes(spec, rows, settings)
    cache = EncodingCache.at(settings.encode.cache or str(home() / "encodings"), describe(settings.encode))
    hits = len(cache.known(hashes))
    return {"total": len(hashes), "hits": hits, "misses": len(hashes) - hits, "exact": True}


def _entity_hashes(spec: DatasetSpec, rows: pa.Table, settings: RunSettings) -> set[bytes]:
    """Hashes of what is said of the window's users and items, each as its table had it at the moment."""
    from components.prompt_transform.lengths import Tokens
    from components.prompt_transform.render import Renderer

    renderer = Renderer(spec, settings.prompt, Tokens.of(settings.prompt.plm) if settings.prompt.plm else None)
    hashes: set[bytes] = set()
    for table in _with_profiles(spec, rows):
        for _, chunk in renderer.chunks(table):
            hashes |= {bytes.fromhex(text_hash(text)) for text in chunk.unique.texts.to_pylist()}
    return hashes


def _with_profiles(spec: DatasetSpec, rows: pa.Table) -> Iterator[pa.Table]:
    """The rows with the profiles that held at their moments, in bounded memory."""
    from feature_repo.asof import FeatureTable, asof_query, session
    from feature_repo.definitions import SIDES, profile_fields

    if EVENT_TIMESTAMP not in rows.column_names:
        rows = rows.append_column(EVENT_TIMESTAMP, pa.array([EVER] * rows.num_rows, pa.timestamp("us", "UTC")))
    found = entity_tables(spec)
    known_only = any(CREATED_TIMESTAMP in table.column_names for table in found.values())
    with TemporaryDirectory(prefix="tandem-plan-") as folder, session() as connection:
        tables = []
        for side, (key, name) in SIDES.items():
            fields = [field.name for field in profile_fields(spec, side)]
            if fields:
                path = Path(folder, f"{name}.parquet")
                pq.write_table(found[name], path, coerce_timestamps="us")
                created = CREATED_TIMESTAMP if CREATED_TIMESTAMP in found[name].column_names else None
                tables.append(FeatureTable(path, {key: key}, fields, EVENT_TIMESTAMP, created, known_only))
        connection.register("__window", rows)
        query = asof_query("SELECT * FROM __window", EVENT_TIMESTAMP, tables, ordered=False)
        yield from (pa.table(batch) for batch in connection.sql(query).to_arrow_reader(ROWS))


def _estimate(dataset: str, settings: RunSettings, rows: int, texts: Mapping[str, Any] | None) -> Content | None:
    from components.registry.costs import earlier_runs, estimate

    runs = earlier_runs(dataset, settings.method, settings.backbone)
    if not runs:
        return None
    steps = estimate(runs, rows, texts["misses"] if texts else 0)
    return {
        "steps": {name: asdict(cost) for name, cost in steps.items()},
        "minutes": sum(cost.seconds for cost in steps.values()) / 60,
        "gpu_minutes": sum(cost.gpu_seconds for cost in steps.values()) / 60,
        "runs": [run.run_id for run in runs],
    }


def _champion(dataset: str) -> Content | None:
    from components.registry.client import champion
    from components.registry.connection import connect, exists

    found = champion(dataset) if exists() else None
    if found is None:
        return None
    run = connect().get_run(found.mlflow_run) if found.mlflow_run else None
    arm = run.data.tags.get("tandem.arm") if run else None
    said = run.data.metrics if run else {}
    metrics = {name: said[f"{arm}.{name}"] for name in ("auc", "logloss", "gauc") if f"{arm}.{name}" in said}
    return {"version": found.version, "run_id": found.run_id, "arm": arm, "metrics": metrics}


def _cached(settings: RunSettings) -> list[str]:
    """The tasks of the compiled pipeline that Kubeflow may take from its cache."""
    from pipelines.training import training_pipeline

    spec = training_pipeline(settings).pipeline_spec
    graphs = (spec.root.dag, *(component.dag for component in spec.components.values()))
    tasks = [
        (name, task)
        for graph in graphs
        for name, task in graph.tasks.items()
        if not task.HasField("parameter_iterator")
    ]
    return sorted(name for name, task in tasks if task.caching_options.enable_cache)
