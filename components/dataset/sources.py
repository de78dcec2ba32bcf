"""From the user's own files to the validated tables: canonical names and types, labels, and every fault by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.dataset import spec as names
from components.dataset.columns import MOMENT, Column, ColumnError, dates, lists, moments, numbers, texts
from components.dataset.errors import UserError
from components.dataset.files import batches_between, columns_of, read_source, say_absent
from components.dataset.labels import kept, labels
from components.dataset.spec import DatasetSpec, FieldSpec, Kind, Source
from components.dataset.window import Window
from components.run import aside, read_json, write_json

__all__ = ["Tables", "check_sources", "read_source", "validated_tables"]

Convert = Callable[[Column], Column]
KEYS = {"user": names.USER_KEY, "item": names.ITEM_KEY}


@dataclass(frozen=True)
class Tables:
    """The validated tables; `users` or `items` is None where the spec names no such source.

    impressions: impression_id int64 (the row of the source, from 0), user_id, item_id, event_timestamp (where the
    spec has one), created_timestamp (where given), label int8, context fields. users and items: their key,
    event_timestamp, created_timestamp (where given), fields. summary: counts, for reports.
    """

    impressions: pa.Table
    users: pa.Table | None
    items: pa.Table | None
    summary: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write impressions.parquet, users.parquet, items.parquet (where there are any) and summary.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("impressions", "users", "items"):
            table = getattr(self, name)
            if table is None:
                (folder / f"{name}.parquet").unlink(missing_ok=True)
                continue
            with aside(folder / f"{name}.parquet") as draft:
                pq.write_table(table, draft, coerce_timestamps="us")
        write_json(folder / "summary.json", self.summary)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the tables that `write` wrote.

        Raises:
            UserError: they are not there.
        """
        paths = {name: folder / f"{name}.parquet" for name in ("impressions", "users", "items")}
        if not paths["impressions"].is_file() or not (folder / "summary.json").is_file():
            raise UserError(f"{folder}: no validated tables; give the folder that the validate step wrote")
        tables = {name: pq.read_table(path) if path.is_file() else None for name, path in paths.items()}
        return cls(**tables, summary=read_json(folder / "summary.json"))


@dataclass
class _Problems:
    """What is wrong with the input, gathered so that one run names it all."""

    found: list[str] = field(default_factory=list)

    def add(self, source: Source, message: str) -> None:
        self.found.append(f"{source.path}: {message}")

    def stop(self) -> None:
        if self.found:
            raise UserError("\n".join(dict.fromkeys(self.found)))


@dataclass(frozen=True)
class _Plan:
    """One column of a validated table: the column it is read from, how, and whether each row needs a value."""

    column: str
    convert: Convert
    required: bool = False


def check_sources(spec: DatasetSpec) -> None:
    """See that each source is there and has the columns that the spec names. Reads only the heads of the files.

    Raises:
        UserError: with a line for each source at fault.
    """
    problems = _Problems()
    for source, plans in _all_plans(spec).values():
        wanted = list(dict.fromkeys(plan.column for plan in plans.values()))
        try:
            there = columns_of(source, wanted)
        except UserError as error:
            problems.found.append(str(error))
            continue
        absent = [column for column in wanted if column not in there]
        if absent:
            problems.add(source, say_absent(absent, there))
    problems.stop()


def validated_tables(spec: DatasetSpec) -> Tables:
    """Read all sources and bring them into the form of the validated tables.

    Raises:
        UserError: with a line for each thing that is wrong, naming file, column, row and value.
    """
    problems = _Problems()
    tables = {name: pa.table(_read(source, plans, problems)) for name, (source, plans) in _all_plans(spec).items()}
    tables = {name: table for name, table in tables.items() if table.num_columns}
    for side in KEYS:
        tables |= _entity_table(spec, side, tables, problems)
    rows = tables["impressions"].num_rows if "impressions" in tables else 0
    if "impressions" in tables and names.LABEL in tables["impressions"].column_names:
        tables["impressions"] = _labelled(spec, tables["impressions"], problems)
    shares = {side: _unknown(spec, side, tables, problems) for side in KEYS}
    problems.stop()
    impressions = tables["impressions"]
    summary = {"rows_read": rows, "dropped_by_label_rule": rows - impressions.num_rows, **_counts(impressions)}
    return Tables(impressions, tables.get("users"), tables.get("items"), summary | shares["user"] | shares["item"])


def entity_tables(spec: DatasetSpec) -> dict[str, pa.Table]:
    """The users and items alone, by the name of their table, as `validated_tables` has them.

    Raises:
        UserError: with a line for each thing that is wrong.
    """
    problems = _Problems()
    plans = {name: plan for name, plan in _all_plans(spec).items() if name != "impressions"}
    tables = {name: pa.table(_read(source, of_source, problems)) for name, (source, of_source) in plans.items()}
    for side in KEYS:
        tables |= _entity_table(spec, side, tables, problems)
    problems.stop()
    return tables


def window_rows(spec: DatasetSpec, window: Window) -> pa.Table:
    """The impressions of a window that the label rule keeps: user_id, item_id and, where there is one, event_timestamp.

    Read without the whole log: the columns that are needed, and of Parquet only the row groups whose statistics let
    rows of the window lie in them.

    Raises:
        UserError: the log cannot be read as the spec says.
    """
    source, keys = spec.sources.impressions, spec.keys
    plans = {names.USER_KEY: _Plan(keys.user, texts), names.ITEM_KEY: _Plan(keys.item, texts)}
    times = _time_plans(spec, keys.timestamp, source)
    # A row that came late may lie in any row group.
    late = window.arrived is not None and names.CREATED_TIMESTAMP in times
    plans |= {name: plan for name, plan in times.items() if late or name == names.EVENT_TIMESTAMP}
    wanted = list(dict.fromkeys([*(plan.column for plan in plans.values()), spec.label.column]))
    found = [pa.table({name: pa.array([], MOMENT if name in times else pa.string()) for name in plans})]
    for batch in batches_between(source, wanted, keys.timestamp, None if late else window.start, window.end):
        try:
            rows = pa.table({name: plan.convert(batch[plan.column]) for name, plan in plans.items()})
            inside = kept(batch[spec.label.column], spec.label, source.decimal)
        except ColumnError as error:
            raise UserError(f"{source.path}: a column that names a key, the moment or the label {error}") from None
        if keys.timestamp is not None:
            arrivals = rows[names.CREATED_TIMESTAMP] if late else None
            inside = pc.and_(inside, window.holds(rows[names.EVENT_TIMESTAMP], arrivals))
        found.append(rows.filter(inside))
    rows = pa.concat_tables(found)
    return rows.drop_columns([names.CREATED_TIMESTAMP]) if late else rows


def _all_plans(spec: DatasetSpec) -> dict[str, tuple[Source, dict[str, _Plan]]]:
    """Each source that there is, with its columns by the name they get, by the name of its table."""
    keys, sources = spec.keys, spec.sources
    plans = {
        names.USER_KEY: _Plan(keys.user, texts, required=True),
        names.ITEM_KEY: _Plan(keys.item, texts, required=True),
        **_time_plans(spec, keys.timestamp, sources.impressions),
        names.LABEL: _Plan(spec.label.column, lambda column: column),
        **_field_plans(spec, "context", sources.impressions),
    }
    found = {"impressions": (sources.impressions, plans)}
    for side, column, source in (("user", keys.user, sources.users), ("item", keys.item, sources.items)):
        if source is not None:
            times = _time_plans(spec, source.timestamp, source)
            fields = _field_plans(spec, side, source)
            key = {KEYS[side]: _Plan(source.key or column, texts, required=True)}
            found[f"{side}s"] = (source, {**key, **times, **fields})
    return found


def _time_plans(spec: DatasetSpec, timestamp: str | None, source: Source) -> dict[str, _Plan]:
    convert = partial(moments, unit=spec.keys.timestamp_unit, form=source.timestamp_format)
    columns = {names.EVENT_TIMESTAMP: timestamp, names.CREATED_TIMESTAMP: source.created}
    return {name: _Plan(column, convert, required=True) for name, column in columns.items() if column is not None}


def _field_plans(spec: DatasetSpec, side: str, source: Source) -> dict[str, _Plan]:
    fields = [field for field in spec.of_side(side) if field.kind is not Kind.ID]
    unit = spec.keys.timestamp_unit
    return {field.name: _Plan(field.source_column, _converter(field, source, unit)) for field in fields}


def _converter(field: FieldSpec, source: Source, unit: str) -> Convert:
    converters: dict[Kind, Convert] = {
        Kind.MULTI: partial(lists, separator=field.separator),
        Kind.NUMBER: partial(numbers, decimal=source.decimal),
        Kind.DATE: partial(dates, unit=unit, form=field.format),
    }
    return converters.get(field.kind, texts)


def _read(source: Source, plans: Mapping[str, _Plan], problems: _Problems) -> dict[str, Column]:
    """The columns of one source, converted; those at fault are named among the problems and left out."""
    wanted = list(dict.fromkeys(plan.column for plan in plans.values()))
    try:
        there = columns_of(source, wanted)
        absent = [column for column in wanted if column not in there]
        if absent:
            problems.add(source, say_absent(absent, there))
        table = read_source(source, [column for column in wanted if column in there])
    except UserError as error:
        problems.found.append(str(error))
        return {}
    if table.num_rows == 0:
        problems.add(source, "holds no rows; give a file with data")
        return {}
    columns = {}
    for name, plan in plans.items():
        if plan.column in absent:
            continue
        try:
            columns[name] = plan.convert(table[plan.column])
        except ColumnError as error:
            problems.add(source, f"column '{plan.column}' {error}")
            continue
        if plan.required and columns[name].null_count:
            row = pc.index(pc.is_null(columns[name]), True).as_py() + 1
            count = columns[name].null_count
            problems.add(source, f"column '{plan.column}' is empty in row {row} ({count} in all); fill or drop them")
    return columns


def _entity_table(
    spec: DatasetSpec, side: str, tables: Mapping[str, pa.Table], problems: _Problems
) -> dict[str, pa.Table]:
    """The user or item table by its name, where there is one: each key once (per moment, where it is dated)."""
    source, table, key = source_of(spec, side), tables.get(f"{side}s"), KEYS[side]
    unique = [key] if source is None or source.timestamp is None else [key, names.EVENT_TIMESTAMP]
    if source is None or table is None or not set(unique) <= set(table.column_names):
        return {}
    counts = table.select(unique).group_by(unique).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1)).sort_by(key)
    if twice.num_rows:
        some = ", ".join(f"'{row[key]}' ({row['count_all']} rows)" for row in twice.slice(0, 3).to_pylist())
        remedy = (
            f"keep one row per {side}, or name the column that dates the rows under 'sources.{side}s.timestamp'"
            if source.timestamp is None
            else f"keep one row per {side} and moment"
        )
        column = source.key or getattr(spec.keys, side)
        problems.add(
            source,
            f"column '{column}' has keys in more than one row ({twice.num_rows} of them), such as {some}; {remedy}",
        )
    if source.timestamp is None:
        # Undated rows hold from the beginning.
        start = pa.array(np.zeros(table.num_rows, np.int64)).cast(MOMENT)
        table = table.add_column(table.column_names.index(key) + 1, names.EVENT_TIMESTAMP, start)
    return {f"{side}s": table}


def _labelled(spec: DatasetSpec, impressions: pa.Table, problems: _Problems) -> pa.Table:
    """The impressions with their number and label, without those that the label rule drops."""
    try:
        label = labels(impressions[names.LABEL], spec.label, spec.sources.impressions.decimal)
    except ColumnError as error:
        problems.add(spec.sources.impressions, f"label column '{spec.label.column}' {error}")
        return impressions
    place = impressions.column_names.index(names.LABEL)
    number = pa.array(np.arange(impressions.num_rows, dtype=np.int64))
    impressions = impressions.set_column(place, names.LABEL, label).add_column(0, names.IMPRESSION_ID, number)
    # A log of which everything is kept need not be there twice.
    return impressions.filter(pc.is_valid(label)) if label.null_count else impressions


def _counts(impressions: pa.Table) -> dict[str, Any]:
    positives = pc.sum(impressions[names.LABEL]).as_py()
    counts: dict[str, Any] = {
        "rows": impressions.num_rows,
        "positives": positives,
        "label_rate": positives / impressions.num_rows if impressions.num_rows else None,
        "users": pc.count_distinct(impressions[names.USER_KEY]).as_py(),
        "items": pc.count_distinct(impressions[names.ITEM_KEY]).as_py(),
    }
    if names.EVENT_TIMESTAMP in impressions.column_names:
        ends = pc.min_max(impressions[names.EVENT_TIMESTAMP]).as_py()
        counts |= {"first_timestamp": ends["min"].isoformat(), "last_timestamp": ends["max"].isoformat()}
    return counts


def _unknown(spec: DatasetSpec, side: str, tables: Mapping[str, pa.Table], problems: _Problems) -> dict[str, Any]:
    """Count the impressions whose user or item its table does not know; they are kept, unless there are too many."""
    source, key = source_of(spec, side), KEYS[side]
    impressions, table = tables.get("impressions"), tables.get(f"{side}s")
    if source is None or impressions is None or table is None:
        return {}
    if key not in impressions.column_names or key not in table.column_names:
        return {}
    keys, known = impressions[key], table[key].combine_chunks()
    unknown = pc.invert(pc.is_in(keys, known))
    count = pc.sum(unknown).as_py() or 0
    share = count / max(len(keys), 1)
    if share > spec.max_unknown_share:
        some = ", ".join(f"'{key}'" for key in pc.unique(keys.filter(unknown)).to_pylist()[:3])
        problems.add(
            spec.sources.impressions,
            f"{share:.1%} of the rows name {side}s that {source.path} does not hold, such as {some}; "
            f"more than 'max_unknown_share: {spec.max_unknown_share}' allows: complete the table or raise the share",
        )
    return {f"unknown_{side}s": count, f"unknown_{side}s_share": share, f"{side}_rows": table.num_rows}


def source_of(spec: DatasetSpec, side: str) -> Source | None:
    """The user or item table's source, where there is one."""
    return spec.sources.users if side == "user" else spec.sources.items
