"""What runs the SQL of the offline store: DuckDB on one node, Spark on many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from components.run import aside
from feature_repo.asof import literal, session

#: Name under which a query finds the rows that were given as a frame.
ENTITIES = "__entities"


class Engine(Protocol):
    """Runs queries in DuckDB's SQL, whatever it makes of them itself."""

    def table(self, query: str, entities: pd.DataFrame | None = None) -> pa.Table:
        """The rows of a query, in memory."""

    def write(self, query: str, path: Path, compression: str = "snappy", entities: pd.DataFrame | None = None) -> None:
        """Write the rows of a query as Parquet, one file or a folder of files, without holding them in memory."""


def engine_of(offline: Any) -> Engine:
    """The engine of an environment's offline store; DuckDB where it is none of ours."""
    engine: Engine = offline.engine() if hasattr(offline, "engine") else DuckEngine()
    return engine


def memory_limit(offline: Any) -> str:
    """What DuckDB may hold in memory, by an environment's offline store, where one node reads or sorts."""
    limit: str = getattr(offline, "memory_limit", DuckEngine.memory_limit)
    return limit


@dataclass(frozen=True)
class DuckEngine:
    """DuckDB in this process, which spills to disk beyond `memory_limit`."""

    memory_limit: str = "3GB"
    threads: int | None = None

    def table(self, query: str, entities: pd.DataFrame | None = None) -> pa.Table:
        """The rows of a query, in memory."""
        with self._connected(entities) as connection:
            return connection.sql(query).to_arrow_table()

    def write(self, query: str, path: Path, compression: str = "snappy", entities: pd.DataFrame | None = None) -> None:
        """Write the rows of a query as one Parquet file."""
        with self._connected(entities) as connection, aside(path) as draft:
            connection.execute(f"COPY ({query}) TO {literal(draft)} (FORMAT parquet, COMPRESSION {compression})")

    @contextmanager
    def _connected(self, entities: pd.DataFrame | None) -> Iterator[Any]:
        with session(self.memory_limit, self.threads) as connection:
            if entities is not None:
                connection.register(ENTITIES, entities)
            yield connection
