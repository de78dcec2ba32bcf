"""The report: one HTML file that needs nothing else, from whatever the run's steps have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.register import panels
from components.register.gate import Judgement
from components.register.settings import RunInfo
from components.run import StepRecord, read_json, steps_behind

Content = Mapping[str, Any]
#: The report's parts in the order of the page: the part's anchor and its name among the links.
SECTIONS = {
    "gate": "Gate",
    "arms": "Arms",
    "lift": "Lift ledger",
    "champion": "Champion",
    "curves": "ROC and calibration",
    "slices": "Slices",
    "training": "Training",
    "alignment": "Alignment health",
    "prompts": "Prompts",
    "degradation": "Degradation",
    "data": "Data",
    "chain": "The chain",
    "lineage": "Lineage",
}
FINETUNED = ("collaborative", "aligned")
PROMPT_SETTINGS = ("form", "granularity", "max_tokens")


@dataclass(frozen=True)
class Outcome:
    """What the register step knows itself: the run, the judgement, the version, and the bundle's manifest."""

    run: RunInfo
    judgement: Judgement
    version: str | None
    manifest: Content


@dataclass(frozen=True)
class Findings:
    """What the other steps have left; None or empty where a step was not part of the run.

    `meta` is the training set's; `training` holds the curve of each arm; `settings` those of each step that has kept
    its own; `steps` holds all that led here.
    """

    metrics: Content
    meta: Content
    curves: Content | None
    ledger: Content | None
    degradation: Content | None
    validation: Content | None
    prompts: Content | None
    health: Content | None
    alignment: Content | None
    training: dict[str, Content]
    settings: dict[str, Content]
    steps: list[StepRecord]

    @classmethod
    def read(cls, training_set: Path, evaluation: Path, pieces: Mapping[str, Path]) -> Findings:
        """Read what there is.

        Args:
            training_set: Folder of the retrieve step.
            evaluation: Folder of the evaluate step.
            pieces: Folders of other steps by name: validation, prompts, alignment, collaborative, aligned.
        """
        metrics = read_json(evaluation / "metrics.json")
        names = {"collaborative": "collaborative", "aligned": metrics["candidate"]}
        # A run that is collaborative alone has no second arm, whose name would be the first one's.
        curves = {names[piece]: _piece(pieces, piece, "curve.json") for piece in FINETUNED if piece in pieces}
        prompts = _piece(pieces, "prompts", "report.json")
        return cls(
            metrics=metrics,
            meta=read_json(training_set / "meta.json"),
            curves=_file(evaluation / "curves.json"),
            ledger=_file(evaluation / "lift.json"),
            degradation=_file(evaluation / "degradation.json"),
            validation=_piece(pieces, "validation", "summary.json"),
            prompts=prompts,
            health=_piece(pieces, "alignment", "health.json"),
            alignment=_piece(pieces, "alignment", "curve.json"),
            training={arm: curve for arm, curve in curves.items() if curve is not None},
            settings=_settings(pieces, prompts),
            steps=_numbered(steps_behind([training_set, evaluation, *pieces.values()])),
        )


def _settings(pieces: Mapping[str, Path], prompts: Content | None) -> dict[str, Content]:
    """The settings that decided what the candidate learnt, by the names that a run's settings have."""
    trained = {"align": "alignment", "finetune": "aligned" if "aligned" in pieces else "collaborative"}
    said = {step: (_piece(pieces, piece, "config.json") or {}).get("meta", {}) for step, piece in trained.items()}
    found = {"prompt": {name: prompts[name] for name in PROMPT_SETTINGS}} if prompts else {}
    return found | {step: meta["settings"] for step, meta in said.items() if "settings" in meta}


def _numbered(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """The steps, each by a name of its own: one that ran in shards, or again, is numbered."""
    seen: Counter[str] = Counter()
    named = []
    for record in steps:
        seen[record.step] += 1
        number = seen[record.step]
        named.append(record if number == 1 else replace(record, step=f"{record.step} {number}"))
    return named


def render(outcome: Outcome, findings: Findings) -> str:
    """The report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "number": panels.number,
        "signed": panels.signed,
    }
    context = {**_outcome(outcome, findings.settings), **_figures(findings), **_learning(findings), **_data(findings)}
    context["charts"] = _marked(_charts(findings), Markup)
    context["sections"] = [(key, title) for key, title in SECTIONS.items() if _shown(key, context)]
    return environment.get_template("report.html.jinja").render(context)


def _outcome(outcome: Outcome, settings: Mapping[str, Content]) -> dict[str, Any]:
    told = {**outcome.manifest["lineage"], **{f"settings of {step}": values for step, values in settings.items()}}
    return {
        "run": outcome.run,
        "judgement": outcome.judgement,
        "version": outcome.version,
        "data_docs": _link(outcome.run.data_docs),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "lineage": {name: panels.words(value) for name, value in told.items() if value is not None},
        "proof": outcome.manifest["proof"],
    }


def _link(docs: str) -> str | None:
    """Where a browser finds the Data Docs; None for an address of the pipeline's own store."""
    if docs.startswith(("http://", "https://")):
        return docs
    return (Path(docs) / "index.html").as_uri() if Path(docs).is_absolute() else None


def _figures(findings: Findings) -> dict[str, Any]:
    metrics = findings.metrics
    lift, champion = metrics.get("lift"), metrics.get("champion") or {}
    worse = findings.degradation
    return {
        "metrics": metrics,
        "metric_names": panels.METRICS,
        "scored": panels.scored(metrics),
        "newcomers": panels.newcomers(metrics),
        "slices": panels.slice_table(metrics),
        "lift": lift,
        "lift_over": lift["over"] if lift else None,
        "lift_table": panels.lift_table(lift) if lift else [],
        "lift_with_new_rows": panels.lift_table(lift["with_new_rows"]) if lift and "with_new_rows" in lift else [],
        "cost": (findings.ledger or {}).get("cost"),
        "champion_lift": champion.get("lift"),
        "champion_table": panels.lift_table(champion["lift"]) if champion.get("lift") else [],
        "degradation": worse,
        "degradation_lines": panels.degradation_table(worse) if worse else [],
        "defaults": panels.default_values(worse) if worse else {},
    }


def _learning(findings: Findings) -> dict[str, Any]:
    health = findings.health
    return {
        "health": health,
        "health_table": panels.health_table(health) if health else [],
        "prompts": findings.prompts,
        "cache": (health or {}).get("cache"),
    }


def _data(findings: Findings) -> dict[str, Any]:
    return {
        "parts": panels.part_table(findings.meta),
        "validation": findings.validation,
        "seconds": sum(record.seconds for record in findings.steps),
    }


def _charts(findings: Findings) -> dict[str, Any]:
    metrics, curves = findings.metrics, findings.curves
    champion = metrics.get("champion") or {}
    return {
        "chain": panels.chain(findings.steps) if findings.steps else None,
        "lift": panels.lift_chart(metrics["lift"]) if metrics.get("lift") else None,
        "champion": panels.lift_chart(champion["lift"]) if champion.get("lift") else None,
        "roc": panels.roc(curves) if curves else None,
        "reliability": panels.reliability(curves) if curves else None,
        "training": panels.training(findings.training),
        "alignment": panels.training({"alignment": findings.alignment}) if findings.alignment else {},
        "tokens": panels.tokens(findings.prompts) if findings.prompts else {},
        "degradation": panels.degradation(findings.degradation) if findings.degradation else {},
    }


def _marked(charts: Any, mark: Any) -> Any:
    """The charts, which escape their own words, marked as markup."""
    if isinstance(charts, dict):
        return {name: _marked(chart, mark) for name, chart in charts.items()}
    return None if charts is None else mark(charts)


def _shown(key: str, context: Mapping[str, Any]) -> bool:
    charts = context["charts"]
    conditions = {
        "lift": context["lift"],
        "champion": context["champion_lift"],
        "curves": charts["roc"] or charts["reliability"],
        "training": charts["training"],
        "alignment": context["health"],
        "prompts": context["prompts"],
        "degradation": context["degradation"],
        "chain": charts["chain"],
    }
    return bool(conditions.get(key, True))


def _piece(pieces: Mapping[str, Path], piece: str, name: str) -> Any:
    return _file(pieces[piece] / name) if piece in pieces else None


def _file(path: Path) -> Any:
    return read_json(path) if path.is_file() else None
