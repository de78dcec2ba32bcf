"""The leak lint: a prompt must say nothing that is known only after the impression."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from components.dataset.errors import UserError
from components.dataset.spec import LABEL, DatasetSpec, FieldSpec, Kind

#: A field is said to tell the label only if its values recur this often on average: rare ones do so by chance.
ROWS_PER_VALUE = 20


def refuse_leaks(spec: DatasetSpec, train: pa.Table) -> None:
    """Refuse prompts that would hold the label, what it is derived from, or what is known only afterwards.

    Args:
        spec: The data set.
        train: Rows of the train part with the label and the prompt's columns.

    Raises:
        UserError: naming the field.
    """
    for field in said_fields(spec):
        if field.known_after_impression:
            raise UserError(f"field '{field.name}' is known only after the impression; take it out of the prompt")
        if _reads_label(spec, field):
            raise UserError(
                f"field '{field.name}' reads '{field.source_column}', from which the label is derived; "
                "write prompt: false and model: false, or remove the field"
            )
        if tells_label(field, train):
            raise UserError(
                f"field '{field.name}' tells the label of every row of the train part: it looks derived from "
                f"'{spec.label.column}'; write known_after_impression: true, or remove the field"
            )


def said_fields(spec: DatasetSpec) -> list[FieldSpec]:
    """The fields whose values a prompt holds or that the spec asks for, and the one that names a history's items."""
    title = spec.history.title if spec.history else None
    return [field for field in spec.fields if field.in_prompt or field.prompt or field.name == title]


def _reads_label(spec: DatasetSpec, field: FieldSpec) -> bool:
    """Whether the field is the label's column, in the impressions or in a table that is the same file."""
    if field.source_column not in {spec.label.column, LABEL}:
        return False
    tables = {"user": spec.sources.users, "item": spec.sources.items, "context": spec.sources.impressions}
    table = tables[field.side]
    return table is not None and table.path == spec.sources.impressions.path


def tells_label(field: FieldSpec, train: pa.Table) -> bool:
    """Whether each value of a context field goes with one label only, over values that recur often."""
    if field.side != "context" or field.kind in {Kind.MULTI, Kind.ID} or field.name not in train.column_names:
        return False
    rows = train.select([field.name, LABEL]).filter(pc.is_valid(train[field.name]))
    if pc.count_distinct(rows[LABEL]).as_py() < 2:
        return False
    groups = rows.group_by(field.name).aggregate([(LABEL, "min"), (LABEL, "max")])
    mixed = pc.any(pc.not_equal(groups[f"{LABEL}_min"], groups[f"{LABEL}_max"])).as_py()
    return not mixed and rows.num_rows >= ROWS_PER_VALUE * groups.num_rows
