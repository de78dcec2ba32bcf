"""The time-machine certificate: whatever happens from a moment on, no training row before it changes."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.perturb import another_future, no_future
from components.dataset.sources import validated_tables
from components.dataset.spec import CREATED_TIMESTAMP, EVENT_TIMESTAMP, IMPRESSION_ID, DatasetSpec
from components.run import home, write_json

FORMAT = 2
#: Rows that are named of each column that changed.
EXAMPLES = 3
#: Rows made canonical at a time.
ROWS = 65_536

IMPRESSIONS = "impressions.parquet"

#: Writes the training rows of a spec, from the folder of its validated tables, to a Parquet file or folder of files.
Join = Callable[[DatasetSpec, Path, Path], None]


@dataclass(frozen=True)
class Leak:
    """A column of the training rows that a change of the future has changed."""

    future: str
    column: str
    rows: int
    examples: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Certificate:
    """What was compared and what came of it.

    `futures` are the two other futures by name, each with the rows changed, deleted and added by table; `columns`
    holds the SHA-256 of each compared column, the same under every future if the verdict is that it holds.
    """

    verdict: Literal["holds", "leaks"]
    dataset: str
    at: str
    rows_compared: int
    rows_of_the_future: int
    futures: dict[str, dict[str, dict[str, int]]]
    columns: dict[str, str]
    leaks: tuple[Leak, ...]
    limits: tuple[str, ...]
    spec_digest: str
    data_digest: str
    tandem: str
    made: str

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain JSON content."""
        return {"format": FORMAT, **asdict(self)}


def certify(dataset: str, at: datetime | None = None, output: Path | None = None) -> tuple[Certificate, Path]:
    """Make the certificate of a data set for the moment `at`, by default the end of its train part.

    Returns:
        The certificate, and the JSON file it was written to: `output`, else home()/certificates/<data set>.json.

    Raises:
        UserError: the data cannot be read, has no time stamps, or none on one side of `at`.
    """
    from components.dataset.sample import ensure
    from components.run import data_home

    spec = load_spec(dataset)
    if spec.keys.timestamp is None:
        raise UserError(f"{dataset}: has no 'keys.timestamp'; without time there is no before that could be certified")
    if dataset == "sample":
        ensure(data_home() / "sample")
    with TemporaryDirectory(prefix="tandem-certify-") as folder:
        validated_tables(spec).write(Path(folder))
        certificate = certificate_of(spec, Path(folder), at, as_retrieved)
    path = output or home() / "certificates" / f"{spec.name}.json"
    write_json(path, certificate.to_json())
    return certificate, path


def as_retrieved(spec: DatasetSpec, validated: Path, rows: Path) -> None:
    """The training rows as the retrieve step makes them: published tables, Feast, point-in-time join."""
    from components.retrieve.step import write_joined
    from feature_repo.definitions import build
    from feature_repo.publish import publish

    write_joined(spec, build(spec, publish(spec, validated)), validated / IMPRESSIONS, rows)


def certificate_of(spec: DatasetSpec, validated: Path, at: datetime | None, join: Join) -> Certificate:
    """Join the validated tables as they are and under two other futures, and compare the rows before `at`.

    Tables lie in files, which DuckDB sorts within the environment's limit of memory: no table is in memory whole.

    Raises:
        UserError: `at` leaves no impression before it.
    """
    at = at or _end_of_train(spec, validated)
    with TemporaryDirectory(prefix="tandem-certify-") as place, _session(spec) as connection:
        folder = Path(place)
        total, past = _note_past(connection, spec, validated, at)
        if past == 0:
            raise UserError(f"--at {at.isoformat()}: no impression is before it; choose a later moment")
        truth = _rows(connection, spec, validated, folder / "truth", join)
        futures: dict[str, dict[str, dict[str, int]]] = {}
        leaks: list[Leak] = []
        for name, change in (("another future", another_future), ("no future", no_future)):
            futures[name] = change(validated, folder / name, at)
            leaks += _leaks(
                connection, name, truth, _rows(connection, spec, folder / name, folder / f"{name} rows", join)
            )
    return Certificate(
        verdict="leaks" if leaks else "holds",
        dataset=spec.name,
        at=at.isoformat(),
        rows_compared=truth.count,
        rows_of_the_future=total - past,
        futures=futures,
        columns=truth.digests,
        leaks=tuple(leaks),
        limits=tuple(_limits(spec)),
        spec_digest=spec.digest,
        data_digest=_tables_digest(validated),
        tandem=version("tandem-ctr"),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class _Rows:
    """Training rows in a file, in the order of their numbers, and the SHA-256 of each column."""

    file: Path
    count: int
    digests: dict[str, str]


def _session(spec: DatasetSpec) -> Any:
    from feature_repo.asof import session
    from feature_repo.engine import memory_limit
    from feature_repo.environment import offline_store

    return session(memory_limit(offline_store(spec)))


def _end_of_train(spec: DatasetSpec, validated: Path) -> datetime:
    moments = np.sort(pq.read_table(validated / IMPRESSIONS, columns=[EVENT_TIMESTAMP])[EVENT_TIMESTAMP].to_numpy())
    moment: datetime = moments[int(len(moments) * spec.split.ratios[0])].astype("datetime64[us]").item()
    return moment.replace(tzinfo=UTC)


def _note_past(connection: Any, spec: DatasetSpec, validated: Path, at: datetime) -> tuple[int, int]:
    """Keep the numbers of the impressions that had happened, and were known, before `at`, as the table __past.

    Returns:
        How many impressions there are, and how many of them are before it.
    """
    times = [EVENT_TIMESTAMP, *([CREATED_TIMESTAMP] if spec.sources.impressions.created is not None else [])]
    before = " AND ".join(f"{time} < TIMESTAMPTZ '{at.isoformat()}'" for time in times)
    files = _files(validated / IMPRESSIONS)
    connection.execute(f"CREATE TEMP TABLE __past AS SELECT {IMPRESSION_ID} FROM {files} WHERE {before}")
    counts = (connection.execute(f"SELECT count(*) FROM {table}").fetchall() for table in (files, "__past"))
    total, past = (rows[0][0] for rows in counts)
    return total, past


def _rows(connection: Any, spec: DatasetSpec, validated: Path, folder: Path, join: Join) -> _Rows:
    """The training rows of the impressions of the past, made in a home of their own."""
    folder.mkdir()
    joined, file = folder / "joined.parquet", folder / "rows.parquet"
    with _at_home(folder / "home"):
        join(spec, validated, joined)
    past = f"SELECT * FROM {_files(joined)} SEMI JOIN __past USING ({IMPRESSION_ID}) ORDER BY {IMPRESSION_ID}"
    connection.execute(f"COPY ({past}) TO '{file}' (FORMAT parquet)")
    shutil.rmtree(folder / "home", ignore_errors=True)
    return _Rows(file, pq.ParquetFile(file).metadata.num_rows, _digests(file))


def _files(path: Path) -> str:
    from feature_repo.asof import scan

    return scan(path)


@contextmanager
def _at_home(folder: Path) -> Iterator[None]:
    """What is published for the certificate is no table that a run should find."""
    before = os.environ.get("TANDEM_HOME")
    os.environ["TANDEM_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TANDEM_HOME"]
        else:
            os.environ["TANDEM_HOME"] = before


def _leaks(connection: Any, name: str, truth: _Rows, rows: _Rows) -> Iterator[Leak]:
    told, seen = truth.digests, rows.digests
    if told[IMPRESSION_ID] != seen.get(IMPRESSION_ID) or list(told) != list(seen):
        yield Leak(name, IMPRESSION_ID, abs(truth.count - rows.count), ())
        return
    for column in told:
        if told[column] != seen[column]:
            yield _leak(connection, name, column, truth, rows)


def _leak(connection: Any, name: str, column: str, truth: _Rows, rows: _Rows) -> Leak:
    from feature_repo.asof import quoted

    value = quoted(column)
    # Compared as words: a NaN is unlike itself, and -0.0 like 0.0.
    changed = (
        f"FROM {_files(truth.file)} AS t JOIN {_files(rows.file)} AS r USING ({IMPRESSION_ID})"
        f" WHERE t.{value}::VARCHAR IS DISTINCT FROM r.{value}::VARCHAR"
    )
    ((count,),) = connection.execute(f"SELECT count(*) {changed}").fetchall()
    shown = f"SELECT {IMPRESSION_ID}, t.{value}, r.{value} {changed} ORDER BY {IMPRESSION_ID} LIMIT {EXAMPLES}"
    examples = (
        {"impression_id": number, "was": _plain(was), "became": _plain(became)}
        for number, was, became in connection.execute(shown).fetchall()
    )
    return Leak(name, column, count, tuple(examples))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _limits(spec: DatasetSpec) -> Iterator[str]:
    """What the certificate cannot vouch for, since the data does not tell it."""
    for name, source in (("users", spec.sources.users), ("items", spec.sources.items)):
        if source is None:
            continue
        if source.timestamp is None and source.created is None:
            yield (
                f"{name}: undated, so every row is taken as known from the beginning; if values were changed later, "
                f"name the column that dates them under 'sources.{name}.timestamp'"
            )
        elif source.created is None:
            yield (
                f"{name}: 'sources.{name}.created' is not named; a row entered later with an earlier date "
                "cannot be told from one that was known"
            )
    if spec.sources.impressions.created is None:
        yield "impressions: 'sources.impressions.created' is not named; each is taken as known when it happened"


def _tables_digest(validated: Path) -> str:
    digests = {file.stem: _digests(file) for file in sorted(validated.glob("*.parquet"))}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _digests(file: Path) -> dict[str, str]:
    """SHA-256 over each column's values, whatever the file's row groups and its bytes beneath nulls are."""
    schema = pq.read_schema(file)
    found = {name: hashlib.sha256(str(schema.field(name).type).encode()) for name in schema.names}
    for piece in _pieces(file):
        for name, digest in found.items():
            part = piece[name].combine_chunks()
            for buffer in _canonical(part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part):
                digest.update(buffer)
    return {name: digest.hexdigest() for name, digest in found.items()}


def _pieces(file: Path) -> Iterator[pa.Table]:
    """The rows of a file, `ROWS` at a time, whatever its row groups are; the last have what is left."""
    waiting = pq.read_schema(file).empty_table()
    for batch in pq.ParquetFile(file).iter_batches(ROWS):
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while waiting.num_rows >= ROWS:
            yield waiting.slice(0, ROWS)
            waiting = waiting.slice(ROWS)
    if waiting.num_rows:
        yield waiting


def _canonical(array: Any) -> Iterator[bytes]:
    yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes()
    if pa.types.is_list(array.type):
        yield pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).tobytes()
        yield from _canonical(pc.list_flatten(array))
    elif pa.types.is_string(array.type):
        yield pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).tobytes()
        yield "".join(array.drop_null().to_pylist()).encode()
    else:
        numbers = array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array
        yield pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False).tobytes()
