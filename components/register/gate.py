"""The gate: from an evaluation's figures to a verdict, with every reason. Nothing but the figures decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from components.register.settings import GateSettings

Figures = Mapping[str, Any]

#: The arm that has never met the PLM.
COLLABORATIVE = "collaborative"
#: AUCs nearer than this are equal: torch and ONNX Runtime do not round alike.
RESOLUTION = 1e-5


class Verdict(StrEnum):
    """The gate's outcome."""

    PROMOTED = "promoted"  # the candidate becomes champion
    KEPT = "kept"  # the champion stays
    REJECTED = "rejected"  # the candidate missed a floor and may not serve


@dataclass(frozen=True)
class Check:
    """One thing that was asked; `passed` is None where it was not judged."""

    name: str
    value: float | None
    bound: str
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict, why, and all that was asked: the floors, and the comparison with the champion."""

    verdict: Verdict
    reasons: tuple[str, ...]
    floors: tuple[Check, ...]
    champion: Check | None

    @property
    def checks(self) -> tuple[Check, ...]:
        """Everything that was asked, in order."""
        return (*self.floors, *([self.champion] if self.champion else []))


def judge(metrics: Figures, settings: GateSettings) -> Judgement:
    """Judge the candidate of an evaluation.

    Args:
        metrics: The content of the evaluation's metrics.json.
        settings: What is asked.

    Returns:
        rejected where a floor is missed; else kept where the champion is as good (a tie keeps it) or may not be
        compared; else promoted, also where there is no champion.
    """
    floors = _floors(metrics, settings)
    champion = _champion_check(metrics.get("champion"), settings)
    missed = [check for check in floors if check.passed is False]
    beaten = (champion.note,) if champion and champion.passed is False else ()
    if missed:
        return Judgement(Verdict.REJECTED, (*(_missed(check) for check in missed), *beaten), floors, champion)
    if beaten:
        return Judgement(Verdict.KEPT, beaten, floors, champion)
    reason = (
        champion.note if champion else "there is no champion yet: the candidate is the first, and meets every floor"
    )
    return Judgement(Verdict.PROMOTED, (reason,), floors, champion)


def _floors(metrics: Figures, settings: GateSettings) -> tuple[Check, ...]:
    figures = metrics["arms"][metrics["candidate"]]
    low, high = settings.calibration
    return (
        _at_least("AUC", figures.get("auc"), settings.min_auc),
        _between("log loss", figures.get("logloss"), -math.inf, settings.max_logloss, f"<= {settings.max_logloss:g}"),
        _between("calibration", figures.get("calibration"), low, high, f"{low:g} to {high:g}"),
        *(_slice_check(name, floor, figures["slices"], settings) for name, floor in settings.slice_floors.items()),
        *_alignment_checks(metrics, settings),
    )


def _slice_check(name: str, floor: float, slices: Figures, settings: GateSettings) -> Check:
    label = f"AUC of {name}"
    if name not in slices:
        return Check(label, None, f">= {floor:g}", False, f"there is no such slice; one of {', '.join(sorted(slices))}")
    rows = slices[name]["rows"]
    if rows < settings.slice_min_rows:
        return Check(label, _number(slices[name].get("auc")), f">= {floor:g}", None, f"not judged: {rows} rows")
    return _at_least(label, slices[name].get("auc"), floor)


def _alignment_checks(metrics: Figures, settings: GateSettings) -> list[Check]:
    """The lift over the collaborative-only arm; always shown where there is one, judged only where it is asked for."""
    least, name, lift = settings.min_lift_of_alignment, "lift of alignment", metrics.get("lift")
    if lift is None and least is None:
        return []
    if lift is None:
        aligned = metrics["candidate"] != COLLABORATIVE
        note = "there is no collaborative-only arm to compare with" if aligned else "nothing was aligned"
        return [Check(name, None, f">= {least:+g}", False if aligned else None, note)]
    difference = _number(lift["overall"].get("auc_difference"))
    if least is None:
        return [Check(name, difference, "none asked", None)]
    checks = [_at_least(name, difference, least, signed=True)]
    if settings.certain_lift_of_alignment:
        lower = _interval(lift["overall"], settings)[0]
        checks.append(_at_least(f"{name}, lower bound", lower, least, signed=True))
    return checks


def _champion_check(champion: Figures | None, settings: GateSettings) -> Check | None:
    if champion is None:
        return None
    name, least = "lift over the champion", settings.min_lift_over_champion
    if not champion.get("compatible"):
        why = f"the champion cannot be scored on these rows ({champion.get('reason')})"
        if settings.incompatible_champion == "keep":
            return Check(name, None, f"> {least:g}", False, f"{why}, and incompatible_champion says: keep")
        return Check(name, None, f"> {least:g}", None, f"{why}: the floors alone decided")
    overall = champion["lift"]["overall"]
    difference, (low, high) = _number(overall.get("auc_difference")), _interval(overall, settings)
    passed = difference is not None and difference > max(least, RESOLUTION)
    certain = low is not None and low > least
    note = _compared(difference, low, high, least, passed, certain or not settings.certain_lift_over_champion)
    if champion["compared_with_new_rows"]:
        note = (
            f"{note}; compared with rows for all newcomers, which `tandem materialize --rows` gives it once it is "
            "champion, as it has given the champion some"
        )
    bound = f"> {least:g}{', lower bound too' if settings.certain_lift_over_champion else ''}"
    return Check(name, difference, bound, passed and (certain or not settings.certain_lift_over_champion), note)


def _compared(
    difference: float | None, low: float | None, high: float | None, least: float, passed: bool, certain: bool
) -> str:
    """The comparison with the champion in a sentence."""
    if difference is None:
        return "the lift over the champion is not defined, and what is not defined never passes"
    range_ = "no interval" if low is None or high is None else f"interval {_signed(low)} to {_signed(high)}"
    lift = f"AUC {_signed(difference)} against the champion on the same rows ({range_})"
    if not passed:
        tie = "a tie keeps the champion" if abs(difference) <= RESOLUTION else f"it must exceed {least:g}"
        return f"{lift}: {tie}"
    if not certain:
        return f"{lift}: the lower bound does not exceed {least:g}, so the champion may be as good, and stays"
    return f"{lift}: better than the champion"


def _interval(overall: Figures, settings: GateSettings) -> tuple[float | None, float | None]:
    found = overall.get(settings.interval) or {}
    return _number(found.get("low")), _number(found.get("high"))


def _at_least(name: str, value: Any, floor: float, signed: bool = False) -> Check:
    return _between(name, value, floor, math.inf, f">= {floor:+g}" if signed else f">= {floor:g}")


def _between(name: str, value: Any, low: float, high: float, bound: str) -> Check:
    number = _number(value)
    return Check(name, number, bound, number is not None and low <= number <= high)


def _missed(check: Check) -> str:
    if check.note:
        return f"{check.name}: {check.note}"
    value = "not defined, and what is not defined never passes" if check.value is None else f"{check.value:.4f}"
    return f"{check.name} is {value}; asked: {check.bound}"


def _number(value: Any) -> float | None:
    """The value if it is a finite number."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits else None


def _signed(value: float) -> str:
    # What rounds to nothing has no sign of its own.
    return f"{round(value, 4) + 0.0:+.4f}"
