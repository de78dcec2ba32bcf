"""The register step: judge the candidate, export it without the PLM, and register it."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.dataset.errors import UserError
from components.models.plm import PlmSpec
from components.register.card import gate_card as card_text
from components.register.export import Source, write_bundle
from components.register.gate import Judgement, Verdict, judge
from components.register.proof import UsedPlm
from components.register.registration import Kept, Registration
from components.register.report import Findings, Outcome, render
from components.register.settings import GateSettings, RunInfo
from components.run import STEPS, VERDICT, aside, read_json, run_dir, write_json
from components.training.warm import CANDIDATE, COLLABORATIVE

log = logging.getLogger("tandem.register")


@dataclass(frozen=True)
class RegisterResult:
    """The verdict, why, and the registered version; None where the candidate was rejected."""

    verdict: Verdict
    reasons: list[str]
    model_version: str | None


def register(
    training_set: Path,
    evaluation: Path,
    model: Path,
    output: Path,
    report: Path,
    gate_card: Path,
    settings: GateSettings,
    run: RunInfo,
    pieces: Mapping[str, Path] | None = None,
) -> RegisterResult:
    """Judge the candidate, export it without the PLM, and register it unless it is rejected; aliases move last.

    The same run twice makes one version. Of two runs that would replace the same champion the first one does; the
    other candidate is kept, and told so.

    Args:
        training_set: Folder of the retrieve step.
        evaluation: Folder of the evaluate step.
        model: Folder of the candidate's finetuned checkpoint.
        output: The bundle's folder, written whatever the verdict.
        report: The report's HTML file.
        gate_card: The gate card's Markdown file.
        settings: What the gate asks.
        run: The run that registers.
        pieces: Folders of other steps for the report: validation, prompts, alignment, collaborative, aligned.

    Raises:
        UserError: the model scores with the PLM, or was trained on another training set, or the registry's address is
            no registry.
        RuntimeError: the ONNX model is not faithful, or may hold something of the PLM (PlmFoundError).
    """
    began = time.time()
    _refuse_unservable(model)
    given = dict(pieces or {})
    findings = Findings.read(training_set, evaluation, given)
    named = {"run_id": run_name(run, training_set, model), "pipeline_run": os.environ.get("TANDEM_RUN_ID")}
    run = run.model_copy(update=named)
    judgement = judge(findings.metrics, settings)
    source = Source(training_set, evaluation, model, trained_with(given), (findings.prompts or {}).get("prompt_hash"))
    manifest = write_bundle(source, output, run)
    kept = Kept(training_set / "vocabulary.json", checkpoints_of(model, given))
    registration = Registration.begin(findings.metrics["dataset"], run, judgement, output, kept, manifest["lineage"])
    version = registration.version.version if registration.version else None

    def tell(judgement: Judgement) -> None:
        write_text(gate_card, card_text(judgement, findings.metrics, run, version))
        write_text(report, render(Outcome(run, judgement, version, manifest), findings))
        registration.attach({"gate_card.md": gate_card, "report.html": report}, evaluation)

    registration.log(findings, settings, manifest["lineage"])
    # All is told before the claim, so that nothing that can fail lies between it and the aliases.
    tell(judgement)
    final = registration.claim(judgement, findings.metrics)
    if final != judgement:
        tell(final)
    card = gate_card.read_text(encoding="utf-8")
    registration.conclude(final, card, began)
    facts = {"run_id": run.run_id, "dataset": run.dataset, "verdict": str(final.verdict), "model_version": version}
    # For whoever tells how the run ended, when it has.
    write_json(run_dir() / VERDICT, {"text": card, "reasons": list(final.reasons), **facts})
    log.info("verdict: %s; %s", final.verdict, "; ".join(final.reasons))
    return RegisterResult(final.verdict, list(final.reasons), version)


def _refuse_unservable(model: Path) -> None:
    """Let nothing pass whose score needs the PLM: its collaborative half alone would not give the evaluated score."""
    from components.training.strategies import ID, strategy_of

    strategy = strategy_of(model)
    if strategy != ID:
        raise UserError(
            f"{model}: strategy {strategy} scores with the PLM, which is never served; it is reported as an arm, and "
            "only the collaborative half can be registered: train it by strategy id"
        )


def run_name(run: RunInfo, training_set: Path, model: Path) -> str:
    """The run's id; where none was given the backend's, else one made from the run's data and weights."""
    if run.run_id:
        return run.run_id
    injected = os.environ.get("TANDEM_RUN_ID") or os.environ.get("MLFLOW_RUN_ID")
    if injected:
        return injected
    digest = hashlib.sha256((training_set / "meta.json").read_bytes())
    for file in sorted(file for file in model.iterdir() if file.name != STEPS):
        digest.update(file.read_bytes())
    return f"content-{digest.hexdigest()[:16]}"


def checkpoints_of(model: Path, pieces: Mapping[str, Path]) -> dict[str, Path]:
    """What later runs may begin with: the arm that has met no PLM, and the candidate where it is another one."""
    found = {COLLABORATIVE: pieces.get("collaborative", model)}
    return found | ({CANDIDATE: model} if model != found[COLLABORATIVE] else {})


def trained_with(pieces: Mapping[str, Path]) -> UsedPlm | None:
    """The PLM that the candidate was aligned with; None where it met none."""
    if "alignment" not in pieces:
        return None
    meta: dict[str, Any] = read_json(pieces["alignment"] / "config.json")["meta"]
    return UsedPlm(PlmSpec(name=meta["plm"], revision=meta.get("plm_revision")), meta.get("plm_digest"))


def write_text(path: Path, text: str) -> None:
    """Write a text beside and rename."""
    with aside(path) as draft:
        draft.write_text(text, encoding="utf-8")
