"""Feast's Spark offline store with this package's joins, and Spark as their engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkOfflineStore, SparkOfflineStoreConfig
from pyspark.sql import DataFrame, SparkSession

from components.run import aside, home
from feature_repo.engine import ENTITIES, Engine
from feature_repo.environment import SPARK
from feature_repo.offline import AsofRetrieval
from feature_repo.spark_sql import to_spark

#: What a session is by itself, and what Spark decides by default otherwise than DuckDB and Arrow do.
SETTINGS = {
    "spark.sql.caseSensitive": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parser.quotedRegexColumnNames": "false",  # Feast's own store sets it
    "spark.sql.session.timeZone": "UTC",
}
QUIET = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}


class SparkAsofOfflineStoreConfig(SparkOfflineStoreConfig):
    """Settings of the store in feature_store.yaml: `spark_conf`, and what DuckDB may hold where one node reads."""

    type: str = SPARK
    memory_limit: str = "3GB"

    def engine(self) -> Engine:
        """Spark with these settings."""
        return SparkEngine(self.spark_conf or {})


class SparkAsofOfflineStore(AsofRetrieval, SparkOfflineStore):  # type: ignore[misc] # no dates instead of entity rows
    """Feast's Spark store with this package's joins, over the same Parquet sources as the DuckDB one."""


@dataclass(frozen=True)
class SparkEngine:
    """Spark, started with `settings` where none runs in this process; rows stay with its executors."""

    settings: Mapping[str, str] = field(default_factory=dict)

    def table(self, query: str, entities: pd.DataFrame | None = None) -> pa.Table:
        """The rows of a query, in the driver's memory."""
        return self._rows(query, entities).toArrow()

    def write(self, query: str, path: Path, compression: str = "snappy", entities: pd.DataFrame | None = None) -> None:
        """Write the rows of a query as a folder of Parquet files, one of each task."""
        with aside(path) as draft:
            self._rows(query, entities).write.option("compression", compression).parquet(f"file:{draft}")

    def _rows(self, query: str, entities: pd.DataFrame | None) -> DataFrame:
        session = spark_session(self.settings)
        if entities is not None:
            session.createDataFrame(entities).createOrReplaceTempView(ENTITIES)
        return session.sql(to_spark(query))


def spark_session(settings: Mapping[str, str]) -> SparkSession:
    """A session of its own, on UTC, in the Spark of this process, which is started if there is none."""
    started = SparkSession.getActiveSession() is not None
    builder: Any = SparkSession.builder.appName("tandem")
    # Spark makes this folder where it is started, and nothing is ever in it.
    own = {**QUIET, "spark.sql.warehouse.dir": str(home() / "spark-warehouse")}
    for name, value in {**own, **settings}.items() if not started else ():
        builder = builder.config(name, value)
    session = builder.getOrCreate().newSession()
    if not started:
        session.sparkContext.setLogLevel("ERROR")
    for name, value in SETTINGS.items():
        session.conf.set(name, value)
    return session
