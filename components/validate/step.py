"""The validate step: sources in, validated tables, Data Docs and the worst severity out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.dataset.catalog import load_spec
from components.dataset.errors import ValidationStoppedError
from components.dataset.sample import ensure
from components.dataset.sources import validated_tables
from components.dataset.spec import DatasetSpec
from components.run import data_home
from components.validate.checkpoint import SEVERITIES, Finding, run_suites, worst_severity
from components.validate.drift import SHARES, moved, shares_of
from components.validate.frames import frames
from components.validate.profile import profile
from components.validate.settings import Severity, ValidateSettings
from components.validate.suite import build_suites

log = logging.getLogger("tandem")


class ValidationSummary(BaseModel):
    """What validation found: counts of the tables, the worst severity that failed, each expectation's result."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    spec_digest: str
    counts: dict[str, Any]
    worst_severity: Severity | None
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Failed expectations, the worst first."""
        failed = [finding for finding in self.findings if not finding.passed]
        return tuple(sorted(failed, key=lambda finding: -SEVERITIES.index(finding.severity)))

    def to_json(self) -> dict[str, Any]:
        """The counts at the top level, beside them the results by severity, as plain JSON content."""
        expectations = {}
        for severity in reversed(SEVERITIES):
            passed = Counter(finding.passed for finding in self.findings if finding.severity == severity)
            failed = [finding.sentence for finding in self.failed if finding.severity == severity]
            expectations[severity] = {"passed": passed[True], "failed": failed}
        head = {"dataset": self.dataset, "spec_digest": self.spec_digest, "worst_severity": self.worst_severity}
        return {**head, **self.counts, "expectations": expectations}


def validate(
    dataset: str, output: Path, docs: Path, settings: ValidateSettings, before: dict[str, Any] | None = None
) -> ValidationSummary:
    """Check the sources against the DatasetSpec, and write them in canonical form.

    Args:
        dataset: Name of an embedded data set or path of a DatasetSpec; the sample is generated if it is not there.
        output: Folder for impressions, users and items (Parquet) and summary.json; not written where the run stops.
        docs: Folder for the Data Docs; written even where the run stops.
        settings: Thresholds, and the severity that stops the run.
        before: The summary of the run that this one is held against; one of another spec says nothing and is left.

    Raises:
        UserError: the sources cannot be read as the spec says.
        ValidationStoppedError: expectations failed with the severity `settings.stop_on` or worse.
    """
    spec = load_spec(dataset)
    if dataset == "sample":
        ensure(data_home() / "sample")
    tables = validated_tables(spec)
    seen, profiled = frames(spec, tables, settings.max_rows), profile(spec, tables)
    if before is not None and before["spec_digest"] != spec.digest:
        before = None
    if before is not None:
        seen[SHARES] = shares_of(moved(spec, profiled, before["profile"]))
    columns = {name: list(frame.columns) for name, frame in seen.items()}
    suites = build_suites(spec, settings, columns, datetime.now(UTC), before)
    findings = run_suites(seen, suites, docs)
    summary = ValidationSummary(
        dataset=spec.name,
        spec_digest=spec.digest,
        counts=tables.summary,
        worst_severity=worst_severity(findings),
        findings=findings,
    )
    _say(summary)
    _stop_if_needed(spec, summary, settings, docs)
    replace(tables, summary={**summary.to_json(), "profile": profiled}).write(output)
    return summary


def _say(summary: ValidationSummary) -> None:
    log.info("%s: %d rows, %d expectations", summary.dataset, summary.counts["rows"], len(summary.findings))
    for finding in summary.failed:
        level = logging.INFO if finding.severity == "info" else logging.WARNING
        log.log(level, "%s: %s", finding.severity, finding.sentence)


def _stop_if_needed(spec: DatasetSpec, summary: ValidationSummary, settings: ValidateSettings, docs: Path) -> None:
    least = SEVERITIES.index(settings.stop_on)
    grave = [finding for finding in summary.failed if SEVERITIES.index(finding.severity) >= least]
    if grave:
        lines = "".join(f"\n  {finding.severity}: {finding.sentence}" for finding in grave)
        raise ValidationStoppedError(f"{spec.name}: validation stopped the run:{lines}\n  See {docs / 'index.html'}")
