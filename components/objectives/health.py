"""Is the alignment sound? Measures that show a collapse before the AUC does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

#: Below these the representation has lost its dimensions or its rows have become one.
MIN_EFFECTIVE_RANK = 2.0
MAX_MEAN_COSINE = 0.98
#: Hits above those of chance, in standard deviations of a rare event's count, from which they are no chance.
CHANCE_DEVIATIONS = 3.0
SIDES = ("text", "table")

#: unaligned: neither side has collapsed, and yet they do not find each other.
Verdict = Literal["healthy", "unaligned", "collapsed"]
HEALTHY: Verdict = "healthy"


def alignment(text: Tensor, table: Tensor) -> float:
    """Mean squared distance of the unit vectors of a pair, [N, d] each (Wang & Isola 2020, eq. 1)."""
    difference = functional.normalize(text, dim=-1) - functional.normalize(table, dim=-1)
    return float(difference.square().sum(-1).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Log mean exp(-t |x - y|²) over pairs of unit vectors of [N, d] (Wang & Isola 2020, eq. 2)."""
    distances = torch.pdist(functional.normalize(x, dim=-1)).square()
    return float(torch.logsumexp(-t * distances, 0) - torch.log(torch.tensor(float(len(distances)))))


def effective_rank(x: Tensor) -> float:
    """Exp of the entropy of the normalised singular values of [N, d] (Roy & Vetterli 2007)."""
    values = torch.linalg.svdvals(x.double())
    total = values.sum()
    if float(total) == 0.0:
        return 0.0
    share = values / total
    return float(torch.exp(torch.special.entr(share).sum()))


def mean_cosine(x: Tensor) -> float:
    """Mean cosine of two different rows of [N, d]."""
    unit = functional.normalize(x, dim=-1)
    rows = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (rows * (rows - 1)))


def retrieval_accuracy(similarity: Tensor, same: Tensor) -> float:
    """Share of rows of [N, N] whose most similar column is their own, or one equal to it."""
    found = similarity.argmax(1)
    return float(same[torch.arange(len(found), device=found.device), found].float().mean())


def report(text: Tensor, table: Tensor) -> dict[str, Any]:
    """All measures of one set of paired vectors [N, d] but for retrieval, which needs their similarities."""
    return {
        "alignment": alignment(text, table),
        "uniformity_text": uniformity(text),
        "uniformity_table": uniformity(table),
        "effective_rank_text": effective_rank(text),
        "effective_rank_table": effective_rank(table),
        "mean_cosine_text": mean_cosine(text),
        "mean_cosine_table": mean_cosine(table),
    }


def judge(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Verdict, list[str]]:
    """The verdict on an alignment and its reasons, of its measures before and after; `rows` is N.

    A side lies together from the beginning until training parts it: where it has not yet, the reason says so.
    """
    was, now = _collapses(before), _collapses(after)
    if now:
        return "collapsed", [f"{said}, as before the alignment" if name in was else said for name, said in now.items()]
    chance, found = after["retrieval_by_chance"], (after["retrieval_by_text"], after["retrieval_by_table"])
    if max(found) <= chance + CHANCE_DEVIATIONS * math.sqrt(chance / after["rows"]):
        shares = " and ".join(f"{share:.2%} by {side}" for side, share in zip(SIDES, found, strict=True))
        return "unaligned", [f"rows and texts find each other no better than by chance ({shares}; chance {chance:.2%})"]
    return HEALTHY, []


def _collapses(measures: Mapping[str, Any]) -> dict[str, str]:
    """What has collapsed, in words, by a name."""
    found = {}
    for side in SIDES:
        rank, cosine = measures[f"effective_rank_{side}"], measures[f"mean_cosine_{side}"]
        if not rank >= MIN_EFFECTIVE_RANK:
            found[f"rank {side}"] = f"the {side} side spans {rank:.1f} dimensions in effect"
        if not cosine <= MAX_MEAN_COSINE:
            found[f"cosine {side}"] = f"the {side} side's rows point the same way (mean cosine {cosine:.3f})"
    return found
