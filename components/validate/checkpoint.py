"""Running the suites and writing Data Docs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.expectations.expectation import Expectation
from pydantic import BaseModel, ConfigDict

from components.run import aside
from components.validate.settings import Severity

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
EXAMPLES = 3


class Finding(BaseModel):
    """The result of one expectation."""

    model_config = ConfigDict(frozen=True)

    table: str
    column: str | None
    expectation: str
    severity: Severity
    passed: bool
    words: str
    found: str = ""

    @property
    def sentence(self) -> str:
        """The expectation in words, and what was found where it failed."""
        return f"{self.table}: expected that {self.words}" + (f"; {self.found}" if self.found else "")


def run_suites(
    frames: Mapping[str, pd.DataFrame], suites: Mapping[str, list[Expectation]], docs: Path
) -> tuple[Finding, ...]:
    """Run each table's expectations on its frame, and write the Data Docs (index.html) into `docs`.

    Each expectation says under `meta: words` what it expects.

    Raises:
        RuntimeError: an expectation could not be computed, which is a fault of ours.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-") as place:
        context: Any = gx.get_context(mode="file", project_root_dir=place)
        context.variables.progress_bars = {"globally": False}
        findings: list[Finding] = []
        for table, expectations in suites.items():
            result = _definition(context, table, expectations).run(batch_parameters={"dataframe": frames[table]})
            findings += [_finding(table, one) for one in result.results]
        context.build_data_docs()
        with aside(docs) as draft:
            shutil.copytree(Path(place) / "gx" / "uncommitted" / "data_docs" / "local_site", draft)
    return tuple(findings)


def worst_severity(findings: tuple[Finding, ...]) -> Severity | None:
    """The highest severity among the failed expectations."""
    failed = {finding.severity for finding in findings if not finding.passed}
    return max(failed, key=SEVERITIES.index, default=None)


def _definition(context: Any, table: str, expectations: list[Expectation]) -> Any:
    asset = context.data_sources.add_pandas(table).add_dataframe_asset(table)
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=expectations))
    return context.validation_definitions.add(gx.ValidationDefinition(name=table, data=batch, suite=suite))


def _finding(table: str, result: Any) -> Finding:
    config = result.expectation_config
    if result.exception_info and _raised(result.exception_info):
        raise RuntimeError(f"{table}: expectation {config.type} could not be computed: {result.exception_info}")
    return Finding(
        table=table,
        column=config.kwargs.get("column"),
        expectation=config.type,
        severity=config.severity.value,
        passed=bool(result.success),
        words=config.meta["words"],
        found="" if result.success else _found(result.result),
    )


def _raised(info: Mapping[str, Any]) -> bool:
    """Whether there was an exception: GX tells it flat, or once for each metric."""
    nested = [value for value in info.values() if isinstance(value, dict)]
    return bool(info.get("raised_exception")) or any(value.get("raised_exception") for value in nested)


def _found(result: Mapping[str, Any]) -> str:
    if "unexpected_count" not in result:
        return f"found {result.get('observed_value')}"
    told = f"{result['unexpected_count']} rows ({result['unexpected_percent']:.1f} %) are otherwise"
    examples = (value for value in result.get("partial_unexpected_list") or [] if not pd.isna(value))
    values = dict.fromkeys(repr(value) for value in examples)
    return told + (f", such as {', '.join(list(values)[:EXAMPLES])}" if values else "")
