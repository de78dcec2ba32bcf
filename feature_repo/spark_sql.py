"""DuckDB's SQL as Spark's: the offline store's queries are written once."""

# ruff: noqa: S608 - names come from a validated spec or are quoted, paths are literals
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

#: Functions that sqlglot hands through under DuckDB's name.
FUNCTIONS = {"EPOCH_US": "unix_micros", "MAKE_TIMESTAMPTZ": "timestamp_micros"}


def to_spark(query: str) -> str:
    """A query of this package, which is written for DuckDB, in Spark's dialect.

    sqlglot translates; what it does not know is done here. Spark has no ASOF join: see `_without_asof`.

    Raises:
        ValueError: the query has an ASOF join of another kind than this package writes.
    """
    tree = sqlglot.parse_one(query, read="duckdb").transform(_translated)
    for select in list(tree.find_all(exp.Select)):
        if any(join.method == "ASOF" for join in select.args.get("joins") or ()):
            _without_asof(select)
    return tree.sql("spark")


def _translated(node: exp.Expr) -> exp.Expr:
    if isinstance(node, exp.CTE):
        node.set("materialized", None)
    elif isinstance(node, exp.Table) and isinstance(node.this, exp.ReadParquet):
        return _files(node)
    elif isinstance(node, exp.Bracket):
        # An index beyond the end is an error of Spark's brackets, and null in DuckDB. sqlglot counts from 0.
        return exp.func("get", node.this, *node.expressions)
    elif isinstance(node, exp.Window) and isinstance(node.this, exp.RowNumber):
        if not node.args.get("partition_by") and not node.args.get("order"):
            return exp.func("monotonically_increasing_id")
    elif isinstance(node, exp.Anonymous) and node.name.upper() in FUNCTIONS:
        return exp.func(FUNCTIONS[node.name.upper()], *node.expressions)
    elif isinstance(node, exp.Anonymous) and node.name.upper() == "TO_MICROSECONDS":
        return exp.Interval(this=exp.Literal.string(node.expressions[0].name), unit=exp.var("MICROSECOND"))
    elif isinstance(node, exp.Anonymous) and node.name.upper() == "LIST_SELECT":
        return _sorted(node)
    return node


def _sorted(node: exp.Anonymous) -> exp.Expr:
    """`list_select(values, list_grade_up(order))`: a list in the order of another, which has no two equal values."""
    values, grades = node.expressions
    pairs = f"array_sort(arrays_zip({grades.expressions[0].sql('spark')}, {values.sql('spark')}))"
    return sqlglot.parse_one(f"transform({pairs}, pair -> pair.{_name(values.name)})", read="spark")


def _files(table: exp.Table) -> exp.Expr:
    """Parquet files by their path, with the numbers of their rows where they are asked for."""
    path, *options = table.this.expressions
    # Without a scheme Spark would look in the cluster's own file system.
    files = exp.Table(this=exp.to_identifier(f"file:{path.name}", quoted=True), db=exp.to_identifier("parquet"))
    if not options:
        files.set("alias", table.args.get("alias"))
        return files
    numbered = exp.select("*", "_metadata.row_index AS file_row_number", dialect="spark").from_(files)
    return numbered.subquery(table.alias or "__files")


@dataclass(frozen=True)
class _Asof:
    """A table that is joined by its newest row: keys and moment of both sides, and the columns that are wanted."""

    source: exp.Expr
    name: str
    keys: tuple[str, ...]
    moment: str
    left_keys: tuple[str, ...]
    left_moment: str
    wanted: tuple[str, ...]


def _without_asof(select: exp.Select) -> None:
    """Replace a query's ASOF left joins by windows over the rows of both sides.

    All rows that share a key are put in the order of time, a table's before the others of the same moment, and each
    row takes the last value of the table before it: one sort, where a join would pair a row with everything that its
    key ever had. Rows travel as structs that are named as their tables were, so that the rest of the query stays.
    """
    joins = [_asof(select, join) for join in select.args["joins"]]
    left = select.args["from_"].this
    have = [left.alias_or_name]
    rows = f"SELECT struct({_name(have[0])}.*) AS {_name(have[0])} FROM {left.sql('spark')}"
    sides: dict[tuple[tuple[str, ...], str], list[_Asof]] = {}
    for join in joins:
        sides.setdefault((join.left_keys, join.left_moment), []).append(join)
    for tables in sides.values():
        rows = _windowed(rows, have, tables)
        have += [table.name for table in tables]
    select.set("joins", None)
    joined = exp.TableAlias(this=exp.to_identifier("__joined"))
    select.set("from_", exp.From(this=exp.Subquery(this=sqlglot.parse_one(rows, read="spark"), alias=joined)))


def _windowed(rows: str, have: Sequence[str], tables: Sequence[_Asof]) -> str:
    """SQL of the rows with a column more for each table: the struct of its values, or null."""
    names = [table.name for table in tables]
    first = tables[0]
    columns = [*map(_name, have), *(f"NULL AS {_name(name)}" for name in names)]
    parts = [f"SELECT {', '.join(columns)}, {_keyed(first.left_keys, first.left_moment, 1)} FROM ({rows}) AS __left"]
    for table in tables:
        values = f"struct({', '.join(table.wanted)})"
        columns = [f"{values if name == table.name else 'NULL'} AS {_name(name)}" for name in (*have, *names)]
        known = " AND ".join(f"{key} IS NOT NULL" for key in table.keys)
        keyed = _keyed(table.keys, table.moment, 0)
        parts.append(f"SELECT {', '.join(columns)}, {keyed} FROM {table.source.sql('spark')} WHERE {known}")
    keys = ", ".join(f"__key{place}" for place in range(len(first.keys)))
    newest = [f"last_value({_name(name)}) IGNORE NULLS OVER before AS {_name(name)}" for name in names]
    kept = ", ".join(map(_name, [*have, *names]))
    return (
        f"SELECT {kept} FROM (SELECT {', '.join([*map(_name, have), *newest])}, __turn"
        f" FROM ({' UNION ALL '.join(parts)}) AS __both"
        f" WINDOW before AS (PARTITION BY {keys} ORDER BY __moment, __turn"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)) AS __seen WHERE __turn = 1"
    )


def _keyed(keys: Sequence[str], moment: str, turn: int) -> str:
    named = [f"{key} AS __key{place}" for place, key in enumerate(keys)]
    return ", ".join([*named, f"{moment} AS __moment", f"{turn} AS __turn"])


def _asof(select: exp.Select, join: exp.Join) -> _Asof:
    name = join.this.alias_or_name
    conditions = list(join.args["on"].flatten()) if isinstance(join.args["on"], exp.And) else [join.args["on"]]
    equal = [condition for condition in conditions if isinstance(condition, exp.EQ)]
    later = [condition for condition in conditions if isinstance(condition, exp.GTE)]
    right = [condition.expression.table for condition in (*equal, *later)]
    if join.method != "ASOF" or join.side != "LEFT" or len(later) != 1 or set(right) != {name}:
        raise ValueError(f"no ASOF left join on equal keys and a moment no earlier: {join.sql('duckdb')}")
    columns = (column for part in select.expressions for column in part.find_all(exp.Column) if column.table == name)
    return _Asof(
        source=join.this,
        name=name,
        keys=tuple(condition.expression.sql("spark") for condition in equal),
        moment=later[0].expression.sql("spark"),
        left_keys=tuple(condition.this.sql("spark") for condition in equal),
        left_moment=later[0].this.sql("spark"),
        wanted=tuple(dict.fromkeys(column.sql("spark") for column in columns)),
    )


def _name(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql("spark")
