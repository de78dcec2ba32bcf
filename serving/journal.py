"""What is written aside: a sample of the predictions with their features, and every click that callers report.

Predictions go to Parquet files, since a sampled request may have a thousand rows of features; feedback goes to JSON
lines, since none of it may be lost. The two are joined later, by request id and item.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.run import aside
from serving.metrics import LOG_DROPPED

log = logging.getLogger("tandem.serving")

PREDICTIONS, FEEDBACK = "predictions", "feedback"
#: Before the name of a raw feature column in the prediction log.
FEATURE = "feature."
#: Requests that wait to be written; any more are dropped and counted.
WAITING = 256
ROWS_PER_FILE = 50_000
MOMENT = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Prediction:
    """A request with n rows that has been scored; `types` are those of its feature columns."""

    request_id: str
    at: datetime
    model_version: str
    feature_service_hash: str
    users: Sequence[str]
    items: Sequence[str]
    probabilities: npt.NDArray[np.float32]
    columns: Mapping[str, Sequence[Any]]
    types: pa.Schema
    degraded: Sequence[str]

    def table(self) -> pa.Table:
        """The rows with their features, as the log has them."""
        count = len(self.items)
        columns: dict[str, Any] = {
            "request_id": pa.repeat(self.request_id, count),
            "at": pa.repeat(pa.scalar(self.at, MOMENT), count),
            "model_version": pa.repeat(self.model_version, count),
            "feature_service_hash": pa.repeat(self.feature_service_hash, count),
            "user_id": pa.array(self.users, pa.string()),
            "item_id": pa.array(self.items, pa.string()),
            "probability": pa.array(self.probabilities),
            "degraded": pa.array([list(self.degraded)] * count, pa.list_(pa.string())),
        }
        for name, values in self.columns.items():
            columns[FEATURE + name] = pa.array(values, self.types.field(name).type)
        return pa.table(columns)


class PredictionLog:
    """Writes a share of the predictions to rotated Parquet files, behind the requests.

    Args:
        folder: Where the files go.
        share: Share of the requests that are written; the same ones in every process, by their id.
        seconds: A file is closed at least this often.
        megabytes: The oldest files go when there are more.
    """

    def __init__(self, folder: Path, share: float, seconds: float, megabytes: int) -> None:
        self.folder, self.share, self.seconds, self.megabytes = folder / PREDICTIONS, share, seconds, megabytes
        self._queue: Queue[Prediction] = Queue(WAITING)
        self._stopped = Event()
        self._thread = Thread(target=self._write, daemon=True)
        self._thread.start()

    def wants(self, request_id: str) -> bool:
        """Whether a request belongs to the sample."""
        return int(request_id[:8], 16) / 2**32 < self.share

    def add(self, prediction: Prediction) -> None:
        """Have a prediction written; one that finds too many waiting is dropped and counted."""
        try:
            self._queue.put_nowait(prediction)
        except Full:
            LOG_DROPPED.inc()

    def stop(self) -> None:
        """Write what is waiting, and end."""
        self._stopped.set()
        self._thread.join(10)

    def _write(self) -> None:
        tables: list[pa.Table] = []
        opened = time.monotonic()
        while not (self._stopped.is_set() and self._queue.empty()):
            try:
                tables.append(self._queue.get(timeout=min(self.seconds, 0.5)).table())
            except Empty:
                pass
            except Exception as error:  # a value of a type that the column has not: this prediction only
                self._dropped(error)
            full = sum(table.num_rows for table in tables) >= ROWS_PER_FILE
            if tables and (full or time.monotonic() - opened > self.seconds):
                self._close(tables)
                tables, opened = [], time.monotonic()
            elif not tables:
                opened = time.monotonic()
        if tables:
            self._close(tables)

    def _close(self, tables: list[pa.Table]) -> None:
        """Write a file for each set of columns: two versions of the model may read different ones."""
        try:
            for schema in dict.fromkeys(table.schema for table in tables):
                alike = pa.concat_tables([table for table in tables if table.schema == schema])
                with aside(self.folder / f"{_stamp()}.parquet") as draft:
                    pq.write_table(alike, draft, compression="zstd")
            tidy(self.folder, self.megabytes)
        except Exception as error:  # a full disk must not stop the service
            self._dropped(error, len(tables))

    def _dropped(self, error: Exception, count: int = 1) -> None:
        LOG_DROPPED.inc(count)
        log.warning("predictions cannot be logged", extra={"why": str(error)})


class FeedbackLog:
    """Appends events to rotated files of JSON lines; what `add` has returned from is in the file."""

    def __init__(self, folder: Path, megabytes: int, rows_per_file: int = 100_000) -> None:
        self.folder, self.megabytes, self.rows_per_file = folder / FEEDBACK, megabytes, rows_per_file
        self._path: Path | None = None
        self._rows = 0
        self._lock = Lock()

    def add(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events.

        Raises:
            OSError: they cannot be written.
        """
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        with self._lock:
            if self._path is None or self._rows >= self.rows_per_file:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._path, self._rows = self.folder / f"{_stamp()}.jsonl", 0
                tidy(self.folder, self.megabytes)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
            self._rows += len(events)


def tidy(folder: Path, megabytes: int) -> None:
    """Remove the oldest files of a folder until the others have `megabytes` at most; the newest always stays."""
    files = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), reverse=True)
    size = 0
    for number, path in enumerate(files):
        with suppress(FileNotFoundError):  # another service that writes to the folder was there first
            size += path.stat().st_size
            if number and size > megabytes * 2**20:
                path.unlink()


def _stamp() -> str:
    """A file name that sorts by time, and that no other machine, process or thread has."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{socket.gethostname()}-{os.getpid()}"
