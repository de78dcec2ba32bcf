"""The plan against the steps themselves, on the sample: dated profiles, a window, an encoding cache partly full."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from components.dataset.prompts import PromptSet
from components.dataset.sources import validated_tables, window_rows
from components.dataset.window import Window
from components.registry.costs import Cost, Spent, estimate
from pipelines.settings import parse_settings
from tests.components.dataset.making import spec_of, write_sources

WINDOW = "2025-05-20/2025-05-26"


@pytest.fixture
def sample(tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from components.dataset.catalog import load_spec
    from pipelines.local import prepare

    prepare("sample")
    return load_spec("sample")


@pytest.mark.slow
def test_rows_and_texts_are_those_of_the_steps(sample, tmp_path):
    from components.encode.cache import EncodingCache
    from components.encode.step import describe
    from components.prompt_transform.step import prompt_transform
    from components.retrieve.step import retrieve
    from pipelines.plan import plan

    settings = parse_settings({"dataset": "sample", "window": WINDOW}, [])
    planned = plan(settings)
    assert planned.texts["hits"] == 0
    assert not (tmp_path / "home" / "encodings").exists(), "a plan writes nothing"
    validated_tables(sample).write(tmp_path / "validated")
    meta = retrieve("sample", tmp_path / "validated", tmp_path / "rows", Window.parse(WINDOW))
    assert planned.rows == {**meta["rows"], "total": sum(meta["rows"].values())}
    prompt_transform(tmp_path / "rows", tmp_path / "prompts", settings.prompt)
    hashes = [bytes.fromhex(text) for text in PromptSet.open(tmp_path / "prompts").texts(["hash"])["hash"].to_pylist()]
    assert planned.texts == {"total": len(hashes), "hits": 0, "misses": len(hashes), "exact": True}

    cache = EncodingCache.open(str(tmp_path / "home" / "encodings"), describe(settings.encode))
    import numpy as np

    some = hashes[: len(hashes) // 3]
    cache.add(some, np.zeros((len(some), 4), np.float32), 1.0, 0)
    again = plan(settings)
    assert (again.texts["hits"], again.texts["misses"]) == (len(some), len(hashes) - len(some))
    assert (again.champion, again.estimate, again.warm_start) == (None, None, None)
    of_flip = plan(settings.model_copy(update={"method": "flip"}))
    assert (of_flip.rows, of_flip.texts) == (planned.rows, None), "its PLM reads the texts while it is trained"
    json.dumps(again.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "window", [Window(), Window.parse("1970-01-01T00:02/1970-01-01T00:06"), Window.parse("/1970-01-01T00:04")]
)
def test_a_text_log_gives_the_rows_of_the_window_that_the_label_rule_keeps(window, tmp_path):
    write_sources(tmp_path)
    spec = spec_of(tmp_path)
    every = validated_tables(spec).impressions.select(["user_id", "item_id", "event_timestamp"])
    expected = every.filter(window.holds(every["event_timestamp"]))
    assert window_rows(spec, window).to_pylist() == expected.to_pylist()
    assert expected.num_rows > 0


def test_a_window_holds_what_came_late(tmp_path):
    log = "uid,mid,ts,came,rating\n1,10,100,100,5\n2,10,200,900,1\n1,20,300,300,4\n3,20,700,700,5\n"
    write_sources(tmp_path, log)
    sources = {name: {"path": f"{tmp_path}/{name}.csv"} for name in ("users", "items")}
    sources["impressions"] = {"path": f"{tmp_path}/impressions.csv", "created": "came"}
    spec = spec_of(tmp_path, sources=sources)
    start, arrived = (datetime.fromtimestamp(second, UTC) for second in (600, 800))
    found = window_rows(spec, Window(start, arrived=arrived))
    assert found.column_names == ["user_id", "item_id", "event_timestamp"]
    assert [moment.timestamp() for moment in found["event_timestamp"].to_pylist()] == [200, 700]
    assert window_rows(spec, Window(start)).num_rows == 1


def test_of_parquet_only_the_row_groups_of_the_window_are_read(tmp_path, monkeypatch):
    """A row group outside is damaged on purpose: whoever reads it fails."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_sources(tmp_path)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = pa.table(
        {
            "uid": ["1", "2"] * 50,
            "mid": ["10", "20"] * 50,
            "ts": [start + timedelta(days=n) for n in range(100)],
            "rating": [5, 1] * 50,
            "device": ["phone"] * 100,
        }
    )
    path = tmp_path / "impressions.parquet"
    pq.write_table(rows, path, row_group_size=10, compression="none", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0)
    content = bytearray(path.read_bytes())
    first = min(group.column(n).data_page_offset for n in range(group.num_columns))
    content[first : first + 60] = b"\xff" * 60
    path.write_bytes(bytes(content))
    sources = {"impressions": {"path": str(path)}, "users": {"path": str(tmp_path / "users.csv")},
               "items": {"path": str(tmp_path / "items.csv")}}  # fmt: skip
    spec = spec_of(tmp_path, sources=sources)
    assert window_rows(spec, Window(start=start + timedelta(days=35))).num_rows == 65
    with pytest.raises(Exception, match=r"."):
        window_rows(spec, Window())


def test_an_estimate_scales_each_step_by_what_it_depends_on():
    steps = {"validate": Cost(10, 0), "encode": Cost(50, 50), "finetune-ctrl": Cost(100, 100)}
    steps |= {"reconstruct": Cost(20, 0)}
    runs = [Spent("new", 1000, 500, steps), Spent("old", 500, 0, {**steps, "encode": Cost(1, 1)})]
    found = estimate(runs, rows=2000, texts=100)
    assert found["validate"] == Cost(10, 0)
    assert found["encode"] == Cost(10, 10), "the run that encoded nothing knows nothing of it"
    assert found["finetune-ctrl"] == Cost(300, 300), "the median of twice and four times as long"
    assert found["reconstruct"] == Cost(60, 0)
    assert estimate([], 10, 10) == {}
