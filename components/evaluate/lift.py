"""The lift ledger: how much better one model is than another on the same rows, how surely, and at what cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from components.dataset.training_set import SplitArrays
from components.evaluate.settings import EvaluateSettings
from components.evaluate.slices import Mask
from components.run import StepRecord
from components.training import metrics
from components.training.metrics import Floats
from components.training.paired import Paired, bootstrap, delong, mean_difference

Content = dict[str, Any]
#: The arm that has never met the PLM.
COLLABORATIVE = "collaborative"
#: Slices whose lift is resampled too; the others have DeLong's interval alone.
RESAMPLED = ("warm", "cold")
#: Steps that a run without alignment would not have.
ALIGNMENT_STEPS = ("prompt_transform", "encode", "align", "pretrain", "reconstruct")


def lift(
    rows: SplitArrays, model: Floats, base: Floats, masks: Mapping[str, Mask], settings: EvaluateSettings
) -> Content:
    """The lift of a model over a base: 'overall', and 'slices' by name.

    Overall there is also an interval over resampled users: impressions of one user are no independent witnesses.
    """
    every = np.ones(len(rows.labels), dtype=bool)
    overall = compare(rows, model, base, every, settings, resampled=True)
    overall["bootstrap_users"] = _resampled(rows, model, base, every, settings, by_user=True)
    sliced = {
        name: compare(rows, model, base, mask, settings, resampled=name in RESAMPLED) for name, mask in masks.items()
    }
    return {"confidence": settings.confidence, "resamples": settings.resamples, "overall": overall, "slices": sliced}


def compare(
    rows: SplitArrays, model: Floats, base: Floats, mask: Mask, settings: EvaluateSettings, *, resampled: bool
) -> Content:
    """AUC and log loss of a model and a base on the same rows, their differences and intervals."""
    labels, users, model_, base_ = rows.labels[mask], rows.user_codes[mask], model[mask], base[mask]
    aucs = metrics.auc(labels, model_), metrics.auc(labels, base_)
    gaucs = metrics.gauc(labels, model_, users), metrics.gauc(labels, base_, users)
    losses = metrics.row_logloss(labels, model_), metrics.row_logloss(labels, base_)
    return {
        "rows": len(labels),
        "auc": aucs[0],
        "auc_base": aucs[1],
        "auc_difference": _difference(*aucs),
        "rela_impr": metrics.rela_impr(*aucs),
        "gauc_difference": _difference(*gaucs),
        "delong": interval(delong(labels, model_, base_, settings.confidence)),
        "bootstrap": _resampled(rows, model, base, mask, settings) if resampled else None,
        "logloss": interval(mean_difference(*losses, settings.confidence)),
    }


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _resampled(
    rows: SplitArrays, model: Floats, base: Floats, mask: Mask, settings: EvaluateSettings, *, by_user: bool = False
) -> Content | None:
    if settings.resamples == 0:
        return None
    clusters = rows.user_codes[mask] if by_user else None
    drawing = (settings.resamples, settings.confidence, settings.seed, clusters)
    found = bootstrap(rows.labels[mask], model[mask], base[mask], *drawing)
    return interval(found)


def interval(paired: Paired | None) -> Content | None:
    """An interval as JSON: difference, low, high, p."""
    return None if paired is None else asdict(paired)


def cost(steps: Sequence[StepRecord]) -> Content | None:
    """Seconds and GPU-seconds of the steps behind an evaluation, and those of alignment; None where none is known.

    Returns:
        'steps' and 'gpu_steps' by name (a step that ran in shards, or again, is summed up), 'alignment_seconds' and
        'alignment_gpu_seconds' of the steps that a run without alignment would not have, None without any.
    """
    if not steps:
        return None
    seconds: defaultdict[str, float] = defaultdict(float)
    gpu_seconds: defaultdict[str, float] = defaultdict(float)
    for record in steps:
        seconds[record.step] += record.seconds
        gpu_seconds[record.step] += record.gpu_seconds
    aligned = [name for name in ALIGNMENT_STEPS if name in seconds]
    return {
        "steps": dict(seconds),
        "gpu_steps": dict(gpu_seconds),
        "alignment_seconds": sum(seconds[name] for name in aligned) if aligned else None,
        "alignment_gpu_seconds": sum(gpu_seconds[name] for name in aligned) if aligned else None,
    }
