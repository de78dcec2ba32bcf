"""What is said of one arm's scores: metrics over all rows and by slice, and curves. All of it JSON-safe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from components.dataset.training_set import SplitArrays
from components.evaluate.settings import EvaluateSettings
from components.evaluate.slices import Mask
from components.training import metrics
from components.training.metrics import Curve, Floats

Content = dict[str, Any]


def summarise(rows: SplitArrays, probabilities: Floats, masks: Mapping[str, Mask]) -> Content:
    """Metrics of an arm over all rows, with 'slices' by name; what the rows do not define is None."""
    labels, users = rows.labels, rows.user_codes
    more = {
        "normalised_entropy": metrics.normalised_entropy(labels, probabilities),
        "pr_auc": metrics.pr_auc(labels, probabilities),
    }
    sliced = {name: measure(labels[mask], probabilities[mask], users[mask]) for name, mask in masks.items()}
    return {**measure(labels, probabilities, users), **more, "slices": sliced}


def measure(labels: npt.NDArray[np.float32], probabilities: Floats, users: npt.NDArray[np.int64]) -> Content:
    """The metrics that every slice has."""
    return {
        "rows": len(labels),
        "label_rate": float(labels.mean(dtype=np.float64)) if len(labels) else None,
        "auc": metrics.auc(labels, probabilities),
        "logloss": metrics.logloss(labels, probabilities),
        "gauc": metrics.gauc(labels, probabilities, users),
        "calibration": metrics.calibration(labels, probabilities),
    }


def curves(rows: SplitArrays, probabilities: Floats, settings: EvaluateSettings) -> Content:
    """ROC, PR and reliability curves as lists; None where there is only one class."""
    reliability = metrics.reliability(rows.labels, probabilities, settings.reliability_bins)
    return {
        "roc": _points(metrics.roc_curve(rows.labels, probabilities, settings.curve_points), "fpr", "tpr"),
        "pr": _points(metrics.pr_curve(rows.labels, probabilities, settings.curve_points), "recall", "precision"),
        "reliability": {
            "rows": reliability.rows.tolist(),
            "predicted": reliability.predicted.tolist(),
            "observed": reliability.observed.tolist(),
        },
    }


def _points(curve: Curve | None, x: str, y: str) -> Content | None:
    if curve is None:
        return None
    return {x: curve.x.tolist(), y: curve.y.tolist(), "threshold": curve.threshold.tolist()}
