"""Evaluations and training sets for the tests of this room."""

from typing import Any

SLICES = ("warm", "cold", "new_users", "new_items", "long_tail", "interactions_0")


def figures(auc: float | None = 0.7, **changes: Any) -> dict[str, Any]:
    """The metrics of an arm."""
    slices = {name: {"rows": 500, "label_rate": 0.3, "auc": auc, "logloss": 0.5, "gauc": auc} for name in SLICES}
    plain = {"rows": 1000, "auc": auc, "logloss": 0.5, "gauc": 0.68, "calibration": 1.02}
    return {**plain, "normalised_entropy": 0.9, "pr_auc": 0.5, "slices": slices, **changes}


def compared(difference: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """One line of a lift: the difference and its interval, 0.01 to either side if not given."""
    if difference is None:
        return {"rows": 1000, "auc": None, "auc_base": None, "auc_difference": None, "delong": None, "bootstrap": None}
    bounds = difference - 0.01 if low is None else low, difference + 0.01 if high is None else high
    found = {"difference": difference, "low": bounds[0], "high": bounds[1], "p": 0.01}
    return {
        "rows": 1000,
        "auc": 0.7,
        "auc_base": 0.7 - difference,
        "auc_difference": difference,
        "rela_impr": 0.02,
        "gauc_difference": difference,
        "delong": found,
        "bootstrap": found,
        "bootstrap_users": found,
        "logloss": found,
    }


def lift(*args: Any) -> dict[str, Any]:
    line = compared(*args)
    return {"confidence": 0.95, "resamples": 1000, "overall": line, "slices": {"warm": line, "cold": line}}


def champion(*args: Any, **changes: Any) -> dict[str, Any]:
    """A champion that could be scored; `args` are the candidate's lift over it."""
    frame: dict[str, Any] = {
        "name": "shop",
        "run_id": "earlier",
        "backbone": "autoint",
        "arm": "ctrl",
        "compatible": True,
    }
    frame |= {"reason": None, "compared_with_new_rows": False}
    return {**frame, **figures(0.69), "lift": lift(*args), **changes}


def metrics(candidate: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The content of metrics.json, the candidate's figures `figures()` if not given."""
    return {
        "dataset": "shop",
        "rows": 1000,
        "candidate": "ctrl",
        "arms": {"collaborative": figures(0.69), "ctrl": candidate or figures()},
        "lift": {"over": "collaborative", **lift(0.01)},
        "champion": None,
        "bayes_auc": None,
        **changes,
    }


def lines() -> dict[str, Any]:
    """The curves of an arm."""
    roc = {"fpr": [0.0, 0.3, 1.0], "tpr": [0.0, 0.6, 1.0], "threshold": [1.0, 0.5, 0.0]}
    reliability = {"rows": [5, 5], "predicted": [0.2, 0.6], "observed": [0.25, 0.5]}
    return {"roc": roc, "pr": None, "reliability": reliability}
