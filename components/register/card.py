"""The gate card: one Markdown text that says why, the same in KFP, in MLflow and in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.register.gate import Check, Judgement
from components.register.panels import scored
from components.register.settings import RunInfo

OUTCOMES = {True: "passed", False: "**failed**", None: "not judged"}


def gate_card(judgement: Judgement, metrics: Mapping[str, Any], run: RunInfo, version: str | None) -> str:
    """The gate card of a candidate.

    Args:
        judgement: The gate's judgement.
        metrics: The content of the evaluation's metrics.json.
        run: The run, its run_id given.
        version: The registered version; None where nothing was registered.
    """
    where = f"version {version}" if version else "not registered"
    lines = [
        f"# {judgement.verdict.capitalize()}: {run.method} on {metrics['dataset']}",
        "",
        f"Run `{run.run_id}`, backbone {run.backbone}, seed {run.seed}, {where}; {metrics['rows']:,} test rows.",
        "",
        *(f"- {reason}" for reason in judgement.reasons),
        "",
        "| check | value | asked | outcome |",
        "|---|---:|---|---|",
        *(_row(check) for check in judgement.checks),
        "",
        "| arm | AUC | log loss | GAUC | calibration |",
        "|---|---:|---:|---:|---:|",
        *(_arm(name, figures) for name, figures in scored(metrics).items()),
        "",
    ]
    return "\n".join(lines)


def _row(check: Check) -> str:
    outcome = OUTCOMES[check.passed] + (f" ({check.note})" if check.note and check.passed is None else "")
    return f"| {_escaped(check.name)} | {_said(check.value)} | {_escaped(check.bound)} | {_escaped(outcome)} |"


def _arm(name: str, figures: Mapping[str, Any]) -> str:
    values = (figures.get(key) for key in ("auc", "logloss", "gauc", "calibration"))
    return f"| {_escaped(name)} | " + " | ".join(_said(value) for value in values) + " |"


def _said(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"


def _escaped(text: str) -> str:
    """The text for a cell of a table: the name of a slice holds whatever value the data have."""
    return " ".join(text.replace("|", "\\|").split())
