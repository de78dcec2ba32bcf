"""The materialize step: online features brought up to the validated tables, without training anything."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.dataset.catalog import load_spec
from components.dataset.window import parsed
from components.run import write_json

log = logging.getLogger("tandem.materialize")


def materialize(dataset: str, validated: Path, end: str, full: bool, output: Path) -> dict[str, Any]:
    """Publish the tables, apply their definitions to the shared store and materialise every view.

    Args:
        dataset: Name of an embedded data set, or path of a DatasetSpec.
        validated: The validate step's tables.
        end: Moment (ISO 8601, UTC where it names no zone) as of which values are taken; now if empty or later.
        full: Write every key, and not only those whose values have changed.
        output: JSON file for what is returned.

    Returns:
        By view: keys with a value, keys written, the newest event (None: undated table) and its age in seconds.

    Raises:
        UserError: the data set is unknown, `validated` is not its validated tables, or `end` is no moment.
        RuntimeError: the online store does not hold what was written.
    """
    from feature_repo.materialise import refresh

    spec, moment = load_spec(dataset), parsed(end)
    views = refresh(spec, validated, moment, full)
    at = datetime.now(UTC)
    report = {name: {**view.to_json(), "age_seconds": view.age(at)} for name, view in views.items()}
    write_json(output, report)
    for name, view in views.items():
        age = view.age(at)
        said = "undated" if age is None else f"newest event {age:.0f} s ago"
        log.info("%s: %d keys, %d written, %s", name, view.keys, view.written, said)
    return report
