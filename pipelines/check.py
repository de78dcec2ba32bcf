"""`tandem check`: what stands between a DatasetSpec and a run, found by the very rules that the run applies."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from components.dataset.check import Checked, Finding, check
from components.dataset.errors import UserError
from components.dataset.sources import Tables
from components.dataset.spec import LABEL, DatasetSpec


def check_dataset(dataset: str) -> Checked:
    """Look at the spec, at all rows of its sources, and, once those can be read, at what the steps would refuse.

    Raises:
        UserError: there is no data set of this name.
    """
    if dataset == "sample":
        from components.dataset.sample import ensure
        from components.run import data_home

        ensure(data_home() / "sample")
    checked = check(dataset)
    if checked.spec is None or checked.tables is None:
        return checked
    more = [*_leaks(checked.spec, checked.tables), *_expectations(checked.spec, checked.tables)]
    found = sorted([*checked.findings, *more], key=lambda finding: finding.severity)
    return replace(checked, findings=tuple(found))


def _leaks(spec: DatasetSpec, tables: Tables) -> list[Finding]:
    """What the leak lint of the prompts refuses."""
    from components.prompt_transform.lint import refuse_leaks, said_fields

    said = [field.name for field in said_fields(spec) if field.name in tables.impressions.column_names]
    try:
        refuse_leaks(spec, tables.impressions.select([*said, LABEL]))
    except UserError as error:
        return [Finding("error", spec.sources.impressions.path, str(error))]
    return []


def _expectations(spec: DatasetSpec, tables: Tables) -> list[Finding]:
    """What fails of the expectations under the settings that a run has by default."""
    from components.validate.checkpoint import run_suites
    from components.validate.frames import frames
    from components.validate.settings import ValidateSettings
    from components.validate.suite import build_suites

    settings = ValidateSettings()
    seen = frames(spec, tables, settings.max_rows)
    columns = {name: list(frame.columns) for name, frame in seen.items()}
    with TemporaryDirectory(prefix="tandem-check-") as folder:
        results = run_suites(seen, build_suites(spec, settings, columns, datetime.now(UTC)), Path(folder) / "docs")
    sources = {name: getattr(spec.sources, name) for name in seen}
    return [
        Finding("error" if result.severity == "critical" else "warning", sources[result.table].path, result.sentence)
        for result in results
        if not result.passed and result.severity != "info"
    ]
