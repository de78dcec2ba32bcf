"""The candidate's metrics as KFP shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Metrics of the candidate, in the order of the run's page.
SHOWN = ("auc", "logloss", "gauc", "calibration", "normalised_entropy", "pr_auc")


def log_metrics(results: Mapping[str, Any], metrics: Any, roc: Any) -> None:
    """Log the candidate's metrics and ROC curve to two KFP artefacts.

    What is None stays out: KFP fails a task over a NaN, and a curve of one class does not exist.

    Args:
        results: What `evaluate` returned.
        metrics: kfp.dsl.Metrics.
        roc: kfp.dsl.ClassificationMetrics.
    """
    candidate = results["candidate"]
    content = results["arms"][candidate]
    shown = {name: content[name] for name in SHOWN}
    shown |= {f"auc_{name}": content["slices"][name]["auc"] for name in ("warm", "cold")}
    if grown := content.get("with_new_rows"):
        cold = grown["slices"]["cold"]
        shown |= {"auc_with_new_rows": grown["auc"], "auc_cold_with_new_rows": cold["auc"]}
    for name, compared in (("lift_over_collaborative", results["lift"]), ("lift_over_champion", _over(results))):
        shown[name] = compared["overall"]["auc_difference"] if compared else None
    for name, value in shown.items():
        if value is not None:
            metrics.log_metric(name, value)
    curve = results["curves"]["arms"][candidate]["roc"]
    if curve is not None:
        roc.log_roc_curve(curve["fpr"], curve["tpr"], curve["threshold"])


def _over(results: Mapping[str, Any]) -> Any:
    return (results["champion"] or {}).get("lift")
