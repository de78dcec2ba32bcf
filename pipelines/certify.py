"""The time-machine certificate: whatever happens from a moment on, no training row before it changes."""

from __future__ import annotations

import hashlib
import json
import os
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

from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.perturb import Perturbed, after, cut, perturbed
from components.dataset.sources import Tables, validated_tables
from components.dataset.spec import EVENT_TIMESTAMP, IMPRESSION_ID, DatasetSpec
from components.run import home, write_json

FORMAT = 1
#: Rows that are named of each column that changed.
EXAMPLES = 3
#: Rows made canonical at a time.
ROWS = 65_536

#: Training rows of a spec from the folder of its validated tables.
Join = Callable[[DatasetSpec, Path], pa.Table]


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
    certificate = certificate_of(spec, validated_tables(spec), at, as_retrieved)
    path = output or home() / "certificates" / f"{spec.name}.json"
    write_json(path, certificate.to_json())
    return certificate, path


def as_retrieved(spec: DatasetSpec, validated: Path) -> pa.Table:
    """The training rows as the retrieve step makes them: published tables, Feast, point-in-time join."""
    from components.retrieve.step import joined
    from feature_repo.definitions import build
    from feature_repo.publish import publish

    return joined(spec, build(spec, publish(spec, validated)), validated / "impressions.parquet")


def certificate_of(spec: DatasetSpec, tables: Tables, at: datetime | None, join: Join) -> Certificate:
    """Join the tables as they are and under two other futures, and compare the rows before `at`.

    Raises:
        UserError: `at` leaves no impression before it.
    """
    at = at or _end_of_train(spec, tables)
    past = tables.impressions.filter(pa.array(~after(tables.impressions, at)))
    if past.num_rows == 0:
        raise UserError(f"--at {at.isoformat()}: no impression is before it; choose a later moment")
    ids = past[IMPRESSION_ID].combine_chunks()
    futures = {"another future": perturbed(tables, at), "no future": cut(tables, at)}
    truth = _rows(spec, tables, ids, join)
    leaks = [leak for name, future in futures.items() for leak in _leaks(name, truth, future, spec, ids, join)]
    return Certificate(
        verdict="leaks" if leaks else "holds",
        dataset=spec.name,
        at=at.isoformat(),
        rows_compared=truth.num_rows,
        rows_of_the_future=tables.impressions.num_rows - past.num_rows,
        futures={name: future.counts for name, future in futures.items()},
        columns={name: _digest(truth[name]) for name in truth.column_names},
        leaks=tuple(leaks),
        limits=tuple(_limits(spec, tables)),
        spec_digest=spec.digest,
        data_digest=_tables_digest(tables),
        tandem=version("tandem-ctr"),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _end_of_train(spec: DatasetSpec, tables: Tables) -> datetime:
    moments = np.sort(tables.impressions[EVENT_TIMESTAMP].to_numpy())
    moment: datetime = moments[int(len(moments) * spec.split.ratios[0])].astype("datetime64[us]").item()
    return moment.replace(tzinfo=UTC)


def _rows(spec: DatasetSpec, tables: Tables, ids: pa.Array, join: Join) -> pa.Table:
    """The training rows of the impressions `ids`, in their order, made in a home of their own."""
    with TemporaryDirectory(prefix="tandem-certify-") as folder, _at_home(Path(folder)):
        tables.write(Path(folder) / "validated")
        table = join(spec, Path(folder) / "validated")
    return table.filter(pc.is_in(table[IMPRESSION_ID], ids)).sort_by(IMPRESSION_ID)


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


def _leaks(
    name: str, truth: pa.Table, future: Perturbed, spec: DatasetSpec, ids: pa.Array, join: Join
) -> Iterator[Leak]:
    rows = _rows(spec, future.tables, ids, join)
    if not rows[IMPRESSION_ID].equals(truth[IMPRESSION_ID]) or rows.column_names != truth.column_names:
        yield Leak(name, IMPRESSION_ID, abs(truth.num_rows - rows.num_rows), ())
        return
    for column in truth.column_names:
        if _digest(truth[column]) != _digest(rows[column]):
            yield _leak(name, column, truth, rows)


def _leak(name: str, column: str, truth: pa.Table, rows: pa.Table) -> Leak:
    # Compared as words: a NaN is unlike itself.
    told, seen = truth[column].to_pylist(), rows[column].to_pylist()
    places = [place for place, pair in enumerate(zip(told, seen, strict=True)) if repr(pair[0]) != repr(pair[1])]
    ids = truth[IMPRESSION_ID]
    examples = (
        {"impression_id": ids[place].as_py(), "was": _plain(told[place]), "became": _plain(seen[place])}
        for place in places[:EXAMPLES]
    )
    return Leak(name, column, len(places), tuple(examples))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _limits(spec: DatasetSpec, tables: Tables) -> Iterator[str]:
    """What the certificate cannot vouch for, since the data does not tell it."""
    for name, source in (("users", spec.sources.users), ("items", spec.sources.items)):
        if getattr(tables, name) is None or source is None:
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


def _tables_digest(tables: Tables) -> str:
    named = {"impressions": tables.impressions, "users": tables.users, "items": tables.items}
    digests = {
        name: {column: _digest(table[column]) for column in table.column_names}
        for name, table in named.items()
        if table is not None
    }
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _digest(column: Any) -> str:
    """SHA-256 over a column's values, whatever its chunks and its bytes beneath nulls are."""
    found = hashlib.sha256(str(column.type).encode())
    for start in range(0, len(column), ROWS):
        part = column.slice(start, ROWS).combine_chunks()
        for buffer in _canonical(part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part):
            found.update(buffer)
    return found.hexdigest()


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
