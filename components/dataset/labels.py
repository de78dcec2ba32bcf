"""From the label's column to 1, 0 or dropped, by the rules of the spec."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.columns import Column, ColumnError, numbers, texts
from components.dataset.spec import LabelSpec, parse_rule

COMPARE = {
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
}


def labels(column: Column, spec: LabelSpec, decimal: str = ".") -> Any:
    """int8: 1 where the positive rule holds, 0 where the negative one does, null where neither: to be dropped.

    Args:
        column: The label's column.
        spec: The rules.
        decimal: Decimal mark of numbers that are words.

    Raises:
        ColumnError: a rule does not fit the values, both hold for a row, or only one class or none is left.
    """
    positive = _holds(column, spec.positive, "positive", decimal)
    negative = _holds(column, spec.negative, "negative", decimal)
    rules = f"'positive: {spec.positive}' and 'negative: {spec.negative}'"
    both = pc.and_(positive, negative)
    if pc.any(both).as_py():
        value = column[pc.index(both, True).as_py()].as_py()
        raise ColumnError(f"holds {value!r}, for which both rules hold: {rules}; let them exclude each other")
    counts = {"positive": pc.sum(positive).as_py() or 0, "negative": pc.sum(negative).as_py() or 0}
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        missed = "all rows are dropped" if len(empty) == 2 else f"no row is {empty[0]}"
        raise ColumnError(f"holds values such as {_examples(column)}: {missed} under {rules}; correct the rules")
    nothing = pa.scalar(None, pa.int8())
    return pc.if_else(positive, pa.scalar(1, pa.int8()), pc.if_else(negative, pa.scalar(0, pa.int8()), nothing))


def kept(column: Column, spec: LabelSpec, decimal: str = ".") -> Any:
    """Which rows [n] the rules keep: those of which one of them holds.

    Raises:
        ColumnError: a rule does not fit the values.
    """
    return pc.or_(
        _holds(column, spec.positive, "positive", decimal), _holds(column, spec.negative, "negative", decimal)
    )


def _holds(column: Column, rule: str, name: str, decimal: str) -> Any:
    operator, operand = parse_rule(rule)
    if isinstance(operand, str):
        return pc.fill_null(COMPARE[operator](texts(column), operand), False)
    try:
        values = numbers(column, decimal)
    except ColumnError as error:
        fault = str(error).split(";")[0]
        raise ColumnError(
            f"{fault}, but 'label.{name}: {rule}' compares numbers; write a rule with a word, such as '== click'"
        ) from None
    return pc.fill_null(COMPARE[operator](values, operand), False)


def _examples(column: Column) -> str:
    return ", ".join(repr(value) for value in pc.unique(column.slice(0, 100_000)).to_pylist()[:5])
