"""Small data sets for the tests of this room."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.spec import DatasetSpec, parse_spec

FIELDS = [
    {"name": "user_id", "side": "user", "kind": "id"},
    {"name": "age", "side": "user", "kind": "number", "buckets": 4},
    {"name": "job", "side": "user", "kind": "category"},
    {"name": "movie", "side": "item", "kind": "id"},
    {"name": "genres", "side": "item", "kind": "multi", "max_values": 3},
    {"name": "title", "side": "item", "kind": "text"},
    {"name": "device", "side": "context", "kind": "category"},
]

IMPRESSIONS = """uid,mid,ts,rating,device
1,10,100,5,phone
2,10,200,1,desktop
1,20,300,4,phone
3,20,400,3,
2,30,500,2,phone
"""
USERS = """uid,age,job
1,25,doctor
2,,painter
3,41,
"""
ITEMS = """mid,genres,title
10,Action|Drama,Heat
20,Comedy,"Airplane, the ""film"" 機上"
30,,Alien
"""


def content(folder: Path | str = ".", **changes: object) -> dict[str, object]:
    """The content of a spec over impressions.csv, users.csv and items.csv in `folder`."""
    names = ("impressions", "users", "items")
    return {
        "name": "films",
        "sources": {name: {"path": f"{folder}/{name}.csv"} for name in names},
        "keys": {"user": "uid", "item": "mid", "timestamp": "ts"},
        "label": {"column": "rating", "positive": "> 3", "negative": "< 3"},
        "fields": FIELDS,
        **changes,
    }


def spec_of(folder: Path | str = ".", **changes: object) -> DatasetSpec:
    return parse_spec(content(folder, **changes), "films.yaml")


def write_sources(folder: Path, impressions: str = IMPRESSIONS, users: str = USERS, items: str = ITEMS) -> None:
    for name, text in (("impressions", impressions), ("users", users), ("items", items)):
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")


def write_parquet(path: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), path)


def rows(count: int = 12) -> pa.Table:
    """Rows of a training set for `spec_of()`."""
    return pa.table(
        {
            "impression_id": pa.array(range(count), pa.int64()),
            "user_id": [str(i % 4) for i in range(count)],
            "item_id": [str(i % 3) for i in range(count)],
            "event_timestamp": pa.array([i * 1_000_000 for i in range(count)], pa.int64()).cast(
                pa.timestamp("us", "UTC")
            ),
            "label": pa.array([i % 2 for i in range(count)], pa.int8()),
            "age": pa.array([None if i % 5 == 4 else 20.0 + i for i in range(count)], pa.float64()),
            "job": [None if i % 6 == 5 else "ab"[i % 2] for i in range(count)],
            "genres": pa.array([["x", "y"][: i % 3] or None for i in range(count)], pa.list_(pa.string())),
            "title": [f"Title {i % 3}" for i in range(count)],
            "device": ["phone"] * count,
        }
    )
