"""The register step's talk with MLflow: the run, the version, the claim, and last of all the aliases."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.dataset.bundle import ROW_MAPS
from components.register.gate import Judgement, Verdict
from components.register.panels import figures_of
from components.register.report import Findings
from components.register.settings import GateSettings, RunInfo
from components.registry import aliases, tracking
from components.registry.client import (
    BUNDLE,
    RUN_ID_TAG,
    VERDICT_TAG,
    Registered,
    find_version,
    model_name,
    register_version,
)
from components.registry.connection import connect
from components.registry.continuation import CHECKPOINTS, window_tags
from components.registry.validations import VALIDATION
from components.run import StepRecord
from components.training.checkpoints import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

log = logging.getLogger("tandem.register")

REASONS_TAG = "tandem.reasons"
#: Of a version whose run has not come to its end.
PENDING = "pending"
#: Of a lineage, what can be searched for among the versions.
SEARCHED = ("dataset_digest", "spec_digest", "feature_service_hash", "prompt_hash", "plm", "plm_digest", "git_commit")
#: Of a tag's value and of a description: a PostgreSQL behind MLflow takes no more.
TEXT_LENGTH = 5000
EVALUATION_FILES = ("metrics.json", "curves.json", "lift.json", "degradation.json")


@dataclass(frozen=True)
class Kept:
    """What a later run begins with, should this one's candidate become champion: checkpoints by arm, and vocabulary.

    It lies beside the bundle, since what is served holds nothing that is not needed to serve.
    """

    vocabulary: Path
    checkpoints: Mapping[str, Path]

    def log(self, client: MlflowClient, run_id: str) -> None:
        """Log them among a run's artefacts."""
        client.log_artifact(run_id, str(self.vocabulary), CHECKPOINTS)
        for arm, checkpoint in self.checkpoints.items():
            for name in (WEIGHTS, CONFIG, ROW_MAPS):
                if name != ROW_MAPS or (checkpoint / name).is_file():
                    client.log_artifact(run_id, str(checkpoint / name), f"{CHECKPOINTS}/{arm}")


@dataclass(frozen=True)
class Registration:
    """A candidate on its way into the registry."""

    client: MlflowClient
    name: str
    run: RunInfo
    parent: Run
    version: Registered | None

    @classmethod
    def begin(
        cls, dataset: str, run: RunInfo, judgement: Judgement, bundle: Path, kept: Kept, lineage: Mapping[str, Any]
    ) -> Registration:
        """Open the run, and register the bundle as a version unless the candidate is rejected. No alias moves.

        The same run again finds its version, and changes none of its files.
        """
        client, name = connect(), model_name(dataset)
        tags = {tracking.DATASET_TAG: dataset, "tandem.arm": run.method, "tandem.backbone": run.backbone}
        tags |= {"tandem.pipeline_run": run.pipeline_run} if run.pipeline_run else {}
        tags |= window_tags(lineage)
        parent = tracking.parent_run(client, name, run.run_id, tags)
        if judgement.verdict is Verdict.REJECTED:
            return cls(client, name, run, parent, None)
        version = find_version(client, name, run.run_id)
        if version is None:
            client.log_artifacts(parent.info.run_id, str(bundle), BUNDLE)
            kept.log(client, parent.info.run_id)
            found = {f"tandem.{key}": str(lineage[key]) for key in SEARCHED if lineage.get(key)}
            said = {**tags, **found, VERDICT_TAG: PENDING}
            version = register_version(client, name, run.run_id, parent.info.run_id, said, "")
        return cls(client, name, run, parent, version)

    def claim(self, judgement: Judgement, metrics: Mapping[str, Any]) -> Judgement:
        """Claim the champion's place for a promoted candidate; it is kept if another run was faster."""
        if judgement.verdict is not Verdict.PROMOTED or self.version is None:
            return judgement
        expected = self._compared_with(metrics.get("champion"))
        before = aliases.alias_version(self.client, self.name, aliases.CANDIDATE)
        try:
            aliases.claim(self.client, self.name, self.version.version, expected, self.run.run_id)
        except aliases.ChampionMovedError as error:
            reason = f"{error}, with which this candidate was not compared: another run was faster; run again"
            return replace(judgement, verdict=Verdict.KEPT, reasons=(reason, *judgement.reasons))
        # Kept back against a champion that is gone, the candidate before has no claim on users any more; one that was
        # kept back since, against this one, has.
        if before is not None and before == aliases.alias_version(self.client, self.name, aliases.CANDIDATE):
            aliases.persist(self.client.delete_registered_model_alias, self.name, aliases.CANDIDATE)
        return judgement

    def log(self, findings: Findings, settings: GateSettings, lineage: Mapping[str, Any]) -> None:
        """Log the run's parameters, figures and steps, and the validation that the next run is held against."""
        given = self.run.model_dump(exclude={"pipeline_run"})
        params = {**given, "gate": settings.model_dump(), "lineage": lineage, **findings.settings}
        spent = {"encode": (findings.health or {}).get("cache") or {}, "rows": findings.meta["rows"]}
        tracking.log_figures(self.client, self.parent, params, {**_figures(findings.metrics), **spent})
        tracking.log_steps(self.client, self.parent, _steps(findings))
        if findings.validation is not None:
            self.client.log_dict(self.parent.info.run_id, dict(findings.validation), VALIDATION)

    def attach(self, files: Mapping[str, Path], evaluation: Path) -> None:
        """Log files under the given names, and the evaluation's."""
        run_id = self.parent.info.run_id
        for name, path in files.items():
            self.client.log_text(run_id, path.read_text(encoding="utf-8"), name)
        for path in (evaluation / name for name in EVALUATION_FILES):
            if path.is_file():
                self.client.log_artifact(run_id, str(path), "evaluation")

    def conclude(self, judgement: Judgement, card: str, began: float) -> None:
        """Say the verdict of run and version, and only then let the aliases follow.

        Args:
            judgement: The verdict.
            card: The gate card.
            began: When the step began, in seconds since 1970.
        """
        said = {VERDICT_TAG: str(judgement.verdict), REASONS_TAG: "\n".join(judgement.reasons)[:TEXT_LENGTH]}
        for key, value in said.items():
            self.client.set_tag(self.parent.info.run_id, key, value)
        own = StepRecord("register", round(began, 3), round(time.time() - began, 3), 0)
        tracking.log_steps(self.client, self.parent, [tracking.StepRun(own, {})])
        tracking.finish(self.client, self.parent)
        if self.version is not None:
            self._say(self.version.version, card, said)
            self._point(self.version.version, judgement)

    def _say(self, version: str, card: str, said: Mapping[str, str]) -> None:
        self.client.update_model_version(self.name, version, card[:TEXT_LENGTH])
        for key, value in said.items():
            self.client.set_model_version_tag(self.name, version, key, value)

    def _point(self, version: str, judgement: Judgement) -> None:
        if judgement.verdict is Verdict.KEPT:
            aliases.persist(self.client.set_registered_model_alias, self.name, aliases.CANDIDATE, version)
            log.info("%s version %s registered; the champion stays", self.name, version)
            return
        champion = aliases.settle(self.client, self.name)[-1].version
        log.info("%s version %s registered; champion is version %s", self.name, version, champion)

    def _compared_with(self, champion: Mapping[str, Any] | None) -> str | None:
        """The version that the evaluation compared the candidate with."""
        if champion is None:
            return None
        compared, now = str(champion.get("run_id")), aliases.alias_version(self.client, self.name, aliases.CHAMPION)
        versions = aliases.search_versions(self.client, self.name, {RUN_ID_TAG: compared})
        # Of one run are its own version and those that have gained rows since: the model that was compared with. And
        # for a champion that no run of ours has registered: the one there is.
        if not versions or now in {str(version.version) for version in versions}:
            return now
        return min((str(version.version) for version in versions), key=int)


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What MLflow keeps of an evaluation: each arm's figures, the champion's, and the lifts over all rows."""
    champion = metrics.get("champion") or {}
    lifts = {"lift_over_collaborative": metrics.get("lift"), "lift_over_champion": champion.get("lift")}
    found = {name: lift["overall"] for name, lift in lifts.items() if lift}
    scored = {"champion": {key: value for key, value in champion.items() if key != "lift"}} if champion else {}
    return {**metrics["arms"], **scored, **found, "bayes_auc": metrics.get("bayes_auc")}


def _steps(findings: Findings) -> list[tracking.StepRun]:
    """The steps of the run with the curves of those that trained."""
    curves = {f"finetune-{arm}": curve for arm, curve in findings.training.items()}
    curves |= {"align": findings.alignment} if findings.alignment else {}
    return [tracking.StepRun(record, _columns(curves.get(record.step))) for record in findings.steps]


def _columns(curve: Mapping[str, Any] | None) -> dict[str, list[float | None]]:
    if curve is None:
        return {}
    return {name: [line.get(name) for line in curve["history"]] for name in figures_of(curve)}
