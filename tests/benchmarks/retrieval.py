"""Rows per second and peak memory of the point-in-time join on a generated log, beside DuckDB's ASOF join by hand.

    python -m tests.benchmarks.retrieval [--rows 20000000] [--users 2000000] [--items 200000] [--folder DIR]
                                         [--variants publish,feast,...]

Each variant runs in a process of its own, so that its peak is its own: the largest resident set, Python, Java and all.
`feast` is the retrieval as the product does it, through Feast to Parquet; `by hand` is the query that a
data engineer would write for these two tables; `step` is the whole retrieve step: publish, join, split, vocabulary.
`publish on Spark` and `Spark` are `publish` and `feast` in the environment for scale, with Spark in local mode.
The rows of all joins are compared by a checksum of all values.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

#: Folder of what the variants write; what lies beside the tables would count as one.
JOINED = "joined"
FEATURES = ("country", "age", "category", "price", "genres")
SPEC = {
    "name": "generated",
    "sources": {
        "impressions": {"path": "impressions.parquet"},
        "users": {"path": "users.parquet", "timestamp": "event_timestamp"},
        "items": {"path": "items.parquet", "timestamp": "event_timestamp"},
    },
    "keys": {"user": "user_id", "item": "item_id", "timestamp": "event_timestamp"},
    "label": {"column": "label"},
    "fields": [
        {"name": "user_id", "side": "user", "kind": "id"},
        {"name": "country", "side": "user", "kind": "category"},
        {"name": "age", "side": "user", "kind": "category"},
        {"name": "item_id", "side": "item", "kind": "id"},
        {"name": "category", "side": "item", "kind": "category"},
        {"name": "price", "side": "item", "kind": "number"},
        {"name": "genres", "side": "item", "kind": "multi"},
        {"name": "device", "side": "context", "kind": "category"},
    ],
}


def generate(folder: Path, rows: int, users: int, items: int) -> None:
    """Thirty days of impressions; a fifth of the users and half of the items change once in them."""
    import duckdb

    connection = duckdb.connect(config={"memory_limit": "3GB", "temp_directory": str(folder / "spill")})
    connection.execute("SET TimeZone = 'UTC'; SELECT setseed(0.5)")
    day = "TIMESTAMPTZ '2025-06-01' + to_seconds(({}) % 2592000)"
    queries = {
        "impressions": f"SELECT range AS impression_id, 'u' || (hash(range) % {users})::VARCHAR AS user_id,"
        f" 'i' || (hash(range + 1) % {items})::VARCHAR AS item_id,"
        f" {day.format('hash(range + 2)')} AS event_timestamp,"
        " (hash(range + 3) % 10 = 0)::TINYINT AS label,"
        f" 'device' || (hash(range + 4) % 4)::VARCHAR AS device FROM range({rows})",
        "users": "SELECT 'u' || id::VARCHAR AS user_id, event_timestamp,"
        " 'country' || (hash(id + part) % 60)::VARCHAR AS country, 'age' || (hash(id) % 7)::VARCHAR AS age FROM"
        f" (SELECT range AS id, 0 AS part, TIMESTAMPTZ '2025-05-01' AS event_timestamp FROM range({users}) UNION ALL"
        f" SELECT range, 1, {day.format('hash(range)')} FROM range({users}) WHERE range % 5 = 0)",
        "items": "SELECT 'i' || id::VARCHAR AS item_id, event_timestamp,"
        " 'category' || (hash(id) % 40)::VARCHAR AS category, (hash(id + part) % 1000) / 10 AS price,"
        " ['genre' || (hash(id) % 18)::VARCHAR, 'genre' || (hash(id + 1) % 18)::VARCHAR] AS genres FROM"
        f" (SELECT range AS id, 0 AS part, TIMESTAMPTZ '2025-05-01' AS event_timestamp FROM range({items}) UNION ALL"
        f" SELECT range, 1, {day.format('hash(range)')} FROM range({items}) WHERE range % 2 = 0)",
    }
    for name, query in queries.items():
        connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (FORMAT parquet, COMPRESSION zstd)")


def by_hand(folder: Path) -> None:
    import duckdb

    connection = duckdb.connect(config={"memory_limit": "3GB", "temp_directory": str(folder / "spill")})
    connection.execute("SET TimeZone = 'UTC'")
    tables = {name: f"read_parquet('{folder / name}.parquet')" for name in ("impressions", "users", "items")}
    query = (
        f"SELECT e.*, {', '.join(FEATURES)} FROM {tables['impressions']} e"
        f" ASOF LEFT JOIN {tables['users']} u ON e.user_id = u.user_id AND e.event_timestamp >= u.event_timestamp"
        f" ASOF LEFT JOIN {tables['items']} i ON e.item_id = i.item_id AND e.event_timestamp >= i.event_timestamp"
    )
    connection.execute(f"COPY ({query}) TO '{folder / JOINED / 'by hand.parquet'}' (FORMAT parquet)")


def feast(folder: Path, output: str = "feast.parquet") -> None:
    from components.dataset.spec import parse_spec
    from components.retrieve.step import write_joined
    from feature_repo.definitions import build
    from feature_repo.publish import publish

    spec = parse_spec(SPEC, "generated")
    write_joined(spec, build(spec, publish(spec, folder)), folder / "impressions.parquet", folder / JOINED / output)


def publication(folder: Path) -> None:
    from components.dataset.spec import parse_spec
    from feature_repo.publish import publish

    publish(parse_spec(SPEC, "generated"), folder)


def step(folder: Path) -> None:
    from components.retrieve.step import retrieve

    (folder / "generated.yaml").write_text(json.dumps(SPEC), encoding="utf-8")
    retrieve(str(folder / "generated.yaml"), folder, folder / "training_set")


#: Publishing comes first, so that the others find the tables published.
VARIANTS = {
    "publish": publication,
    "by hand": by_hand,
    "feast": feast,
    "step": step,
    "publish on Spark": publication,
    "Spark": partial(feast, output="Spark.parquet"),
}
#: The environment for scale; the registry and the online store are not asked in a retrieval.
SCALE = {"TANDEM_FEAST": "scale", "TANDEM_FEAST_REGISTRY": "postgresql://none", "TANDEM_FEAST_REDIS": "none:0"}


def checksum(path: Path) -> tuple[int, int]:
    """Rows of a table, and the sum of their hashes whatever their order."""
    import duckdb

    columns = ", ".join(("impression_id", *FEATURES))
    files = f"{path}/*.parquet" if path.is_dir() else path
    query = f"SELECT count(*), sum(hash({columns})::HUGEINT) FROM read_parquet('{files}')"
    rows, total = duckdb.sql(query).fetchall()[0]
    return rows, total


def run(variant: str, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory in GB of one variant in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.retrieval", "--variant", variant]
    scale = "Spark" in variant
    env = {**os.environ, "TANDEM_HOME": str(folder / f"home{'-scale' * scale}"), **(SCALE if scale else {})}
    done = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def measured(variant: str, folder: Path) -> dict[str, float]:
    if variant != "by hand":
        import feature_repo.store  # noqa: F401 - imports of ten seconds are no part of the join
    if "Spark" in variant:
        from components.dataset.spec import parse_spec
        from feature_repo.environment import offline_store

        # Nor is the start of a JVM.
        offline_store(parse_spec(SPEC, "generated")).engine().table("SELECT 1 AS one")
    before, started = used(), time.perf_counter()
    VARIANTS[variant](folder)
    seconds, after = time.perf_counter() - started, used()
    return {"seconds": seconds, "cpu": after["cpu"] - before["cpu"], "gb": after["gb"]}


def used() -> dict[str, float]:
    """CPU seconds and peak memory of this process and of Spark's."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    cpu, peak = mine.ru_utime + mine.ru_stime, mine.ru_maxrss * 1024
    for child in (one for one in psutil.Process().children(recursive=True) if one.name() == "java"):
        times = child.cpu_times()
        cpu += times.user + times.system
        status = Path(f"/proc/{child.pid}/status").read_text()
        peak += 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"cpu": cpu, "gb": peak / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="Where the log and the results lie; a temporary folder if not set.")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--variants", help="Those to run, between commas; all if not set.")
    flags = parser.parse_args()
    if flags.variant:
        print(json.dumps(measured(flags.variant, flags.folder)))
        return
    variants = flags.variants.split(",") if flags.variants else list(VARIANTS)
    with tempfile.TemporaryDirectory(prefix="tandem-retrieval-") as temporary:
        folder = flags.folder or Path(temporary)
        shutil.rmtree(folder / JOINED, ignore_errors=True)
        (folder / JOINED).mkdir(parents=True)
        generate(folder, flags.rows, flags.users, flags.items)
        found = {variant: run(variant, folder) for variant in variants}
        joins = [folder / JOINED / f"{name}.parquet" for name in ("feast", "by hand", "Spark") if name in variants]
        if len({checksum(path) for path in joins}) > 1:
            raise SystemExit("the joins differ")
    print(f"{flags.rows:,} impressions, {flags.users:,} users, {flags.items:,} items")
    print(f"{'':<18}{'seconds':>10}{'CPU s':>10}{'rows/s':>14}{'peak GB':>10}")
    for variant, line in found.items():
        rate = flags.rows / line["seconds"]
        print(f"{variant:<18}{line['seconds']:>10.1f}{line['cpu']:>10.1f}{rate:>14,.0f}{line['gb']:>10.2f}")
    if "by hand" in found:
        for name in ("feast", "Spark"):
            if name in found:
                ratios = (found[name][unit] / found["by hand"][unit] for unit in ("seconds", "cpu"))
                print(f"{name} / by hand: {' s, '.join(f'{ratio:.2f}' for ratio in ratios)} CPU s (target 2)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
