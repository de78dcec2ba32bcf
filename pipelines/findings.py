"""From the scores of all trials to figures, a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.dataset.spec import IMPRESSION_ID
from components.dataset.training_set import SplitArrays, TrainingSet
from components.evaluate.lift import COLLABORATIVE, compare, interval
from components.evaluate.settings import EvaluateSettings
from components.evaluate.slices import Mask, slices
from components.evaluate.step import bayes_probabilities
from components.evaluate.summary import summarise
from components.objectives.health import HEALTHY
from components.register.charts import Axis, Bar, bars, intervals
from components.training import metrics
from components.training.metrics import Floats
from components.training.paired import Paired
from pipelines.trials import Trial

Content = dict[str, Any]
#: Slices that every table shows, and their titles.
SHOWN = {"warm": "warm", "new_users": "new users", "new_items": "new items", "long_tail": "long tail"}
OVERALL = ("auc", "logloss", "gauc", "calibration")
#: Verdicts of an alignment that need no word; None: there was no alignment.
FINE = (None, HEALTHY)
#: The slices whose difference the paired tests and the plot look at.
TESTED = (None, *SHOWN)


@dataclass(frozen=True)
class Measured:
    """The rows of a part that every trial is measured on."""

    dataset: str
    part: str
    rows: SplitArrays
    impressions: Any
    masks: Mapping[str, Mask]
    truth: Floats | None
    settings: EvaluateSettings

    @classmethod
    def read(cls, training_set: Path, part: str, settings: EvaluateSettings) -> Measured:
        """Read a part of a training set; `truth` are the probabilities that its labels were drawn from, if known."""
        data = TrainingSet.open(training_set)
        rows = data.arrays(part)
        impressions = data.table(part, [IMPRESSION_ID])[IMPRESSION_ID]
        masks = slices(data, part, rows, settings.slice_values)
        truth = bayes_probabilities(data, impressions)
        return cls(data.spec.name, part, rows, impressions, masks, truth, settings)

    def scores(self, trial: Trial) -> Floats:
        """A trial's probabilities [n] in the order of the rows."""
        table = pq.read_table(trial.scores(self.part))
        if not table[IMPRESSION_ID].equals(self.impressions):
            raise RuntimeError(f"{trial.scores(self.part)} does not hold the rows of part '{self.part}'; delete it")
        return np.asarray(table["probability"].to_numpy(), dtype=np.float64)

    def bayes(self) -> Content | None:
        """The AUC of the true probabilities, over all rows and by slice."""
        if self.truth is None:
            return None
        truth, labels = self.truth, self.rows.labels
        sliced = {name: metrics.auc(labels[self.masks[name]], truth[self.masks[name]]) for name in SHOWN}
        return {"auc": metrics.auc(labels, truth), "slices": sliced}


def find(measured: Measured, trials: Sequence[Trial], descriptions: Mapping[str, str]) -> Content:
    """All figures of a comparison, JSON-safe: `arms` by name, each with its spread over seeds and its lift.

    With several backbones an arm is named backbone/arm; one that brings its own stands beside the others of each. The
    base is the collaborative-only arm, else the first.
    """
    groups = list(dict.fromkeys(trial.group for trial in trials))
    names = list(dict.fromkeys(trial.arm for trial in trials))
    base = COLLABORATIVE if COLLABORATIVE in names else names[0]
    arms: Content = {}
    for group in groups:
        runs = {name: [t for t in trials if (t.group, t.arm) == (group, name)] for name in names}
        prefix = f"{group}/" if len(groups) > 1 else ""
        based = [measured.scores(trial) for trial in runs[base]]
        for name in [base, *(name for name in names if name != base)]:
            told = {"backbone": runs[name][0].backbone, "description": descriptions[name], "base": f"{prefix}{base}"}
            lifted = None if name == base else based
            arms[f"{prefix}{name}"] = {**told, **_arm(measured, runs[name], lifted)}
    return {
        "dataset": measured.dataset,
        "part": measured.part,
        "rows": len(measured.rows.labels),
        "slice_rows": {name: int(measured.masks[name].sum()) for name in SHOWN},
        "seeds": sorted({trial.seed for trial in trials}),
        "bayes": measured.bayes(),
        "arms": arms,
    }


def _arm(measured: Measured, trials: Sequence[Trial], base: Sequence[Floats] | None) -> Content:
    seeds = [trial.seed for trial in trials]
    scores = [measured.scores(trial) for trial in trials]
    found = [summarise(measured.rows, values, measured.masks) for values in scores]
    curves = [trial.curve() for trial in trials]
    sliced = {
        name: {metric: spread(seeds, [one["slices"][name][metric] for one in found]) for metric in OVERALL}
        for name in measured.masks
    }
    content = {
        **{metric: spread(seeds, [one[metric] for one in found]) for metric in OVERALL},
        "slices": sliced,
        "valid_auc": spread(seeds, [curve["history"][curve["best_epoch"] - 1]["valid_auc"] for curve in curves]),
        "epochs": dict(zip(map(str, seeds), (curve["best_epoch"] for curve in curves), strict=True)),
        "alignment": dict(zip(map(str, seeds), (trial.alignment() for trial in trials), strict=True)),
        "seconds": spread(seeds, [trial.seconds() for trial in trials]),
        "encoding_seconds": trials[0].encoding_seconds(),
        "settings": trials[0].settings.model_dump(
            mode="json", by_alias=True, include={"method", "model", "prompt", "encode", "align", "pretrain", "finetune"}
        ),
    }
    return content if base is None else {**content, "lift": _lift(measured, seeds, scores, base)}


def _lift(measured: Measured, seeds: Sequence[int], scores: Sequence[Floats], base: Sequence[Floats]) -> Content:
    """The lift over the base: by seed on the same rows, and tested over seeds; overall and by slice."""
    everything = np.ones(len(measured.rows.labels), dtype=bool)
    content = {}
    for name in TESTED:
        mask = everything if name is None else measured.masks[name]
        found = [
            compare(measured.rows, one, other, mask, measured.settings, resampled=name is None)
            for one, other in zip(scores, base, strict=True)
        ]
        told: Content = {
            "auc": over_seeds([one["auc_difference"] for one in found], measured.settings.confidence),
            "logloss": over_seeds([_difference(one["logloss"]) for one in found], measured.settings.confidence),
            "rela_impr": spread(seeds, [one["rela_impr"] for one in found]),
            "by_seed": dict(zip(map(str, seeds), found, strict=True)),
        }
        if measured.truth is not None:
            told["share_of_the_way"] = spread(seeds, [_way(measured, mask, one) for one in found])
        content["overall" if name is None else name] = told
    return content


def _difference(found: Content | None) -> float | None:
    return None if found is None else found["difference"]


def _way(measured: Measured, mask: Mask, found: Content) -> float | None:
    """How much of the distance from the base's AUC to the best possible one the arm covers."""
    assert measured.truth is not None  # noqa: S101  (asked for only where it is known)
    best = metrics.auc(measured.rows.labels[mask], measured.truth[mask])
    if best is None or found["auc_difference"] is None or best <= found["auc_base"]:
        return None
    return float(found["auc_difference"] / (best - found["auc_base"]))


def spread(seeds: Sequence[int], values: Sequence[float | None]) -> Content:
    """Mean, standard deviation (n - 1) and the values by seed; None where a seed has none, or for one seed."""
    known = [value for value in values if value is not None]
    whole = len(known) == len(values)
    return {
        "mean": float(np.mean(known)) if whole else None,
        "sd": float(np.std(known, ddof=1)) if whole and len(known) > 1 else None,
        "by_seed": dict(zip(map(str, seeds), values, strict=True)),
    }


def over_seeds(differences: Sequence[float | None], confidence: float = 0.95) -> Content | None:
    """Paired t-test of differences by seed: mean, interval and two-sided p; None below two seeds."""
    from scipy import stats

    known = np.array([value for value in differences if value is not None], dtype=np.float64)
    if len(known) < 2 or len(known) < len(differences):
        return None
    mean, error = float(known.mean()), float(known.std(ddof=1)) / math.sqrt(len(known))
    if error == 0:
        return interval(Paired(mean, mean, mean, float(mean == 0)))
    freedom = len(known) - 1
    reach = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    return interval(Paired(mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean) / error, freedom))))


def table(findings: Content) -> str:
    """The comparison as Markdown."""
    seeds, arms = findings["seeds"], findings["arms"]
    base = next(iter(arms.values()))["base"].split("/")[-1]
    rows = ", ".join(f"{count:,} {SHOWN[name]}" for name, count in findings["slice_rows"].items())
    held = findings.get("hold_out_items")
    out = f"; {held:.0%} of the items held out of the train part" if held else ""
    title = [
        f"## {findings['dataset']}: {len(arms)} arms, seeds {', '.join(map(str, seeds))}",
        "",
        f"{findings['rows']:,} rows of the {findings['part']} part ({rows}){out}; epochs chosen on the valid part; "
        f"mean ± standard deviation over seeds; lift over '{base}', p of a paired t-test over seeds.",
        "",
    ]
    parts = [title, _overall_table(arms), _unsound(arms), ["", "AUC by slice", ""], _slice_table(findings)]
    if any("lift" in arm for arm in arms.values()):
        parts += [["", "Lift by seed, DeLong's interval on the same rows", ""], _seed_table(arms)]
    return "\n".join(line for part in parts for line in part) + "\n"


def _overall_table(arms: Content) -> list[str]:
    heads = ["arm", "AUC", "log loss", "GAUC", "RelaImpr", "lift (AUC)", "p", "lift (log loss)", "p"]
    heads += ["epochs", "training s", "encoding s"]
    lines = []
    for name, arm in arms.items():
        lift = arm.get("lift", {}).get("overall")
        tests = [None, None] if lift is None else [lift["auc"], lift["logloss"]]
        means = [None, None] if lift is None else [_mean_of(lift["by_seed"], key) for key in ("auc", "logloss")]
        lines.append(
            [
                name,
                *(_spread(arm[metric]) for metric in ("auc", "logloss", "gauc")),
                "" if lift is None else _percent(lift["rela_impr"]["mean"]),
                *(word for mean, test in zip(means, tests, strict=True) for word in (_signed(mean), _p(test))),
                ", ".join(str(epoch) for epoch in arm["epochs"].values()),
                f"{arm['seconds']['mean']:.0f}",
                "" if arm["encoding_seconds"] is None else f"{arm['encoding_seconds']:.0f}",
            ]
        )
    return _markdown(heads, lines)


def _unsound(arms: Content) -> list[str]:
    """A line on each arm whose alignment is not healthy by every seed."""
    lines = []
    for name, arm in arms.items():
        found = [f"{verdict} (seed {seed})" for seed, verdict in arm["alignment"].items() if verdict not in FINE]
        if found:
            lines += ["", f"Alignment of {name}: {', '.join(found)}; health.json beside its checkpoint says why."]
    return lines


def _mean_of(by_seed: Content, key: str) -> float | None:
    """Mean over seeds of the difference in AUC or in log loss; None where a seed has none."""
    found = [one["auc_difference"] if key == "auc" else _difference(one[key]) for one in by_seed.values()]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if len(known) == len(found) else None


def _slice_table(findings: Content) -> list[str]:
    heads = ["arm"]
    for title in SHOWN.values():
        heads += [title, "lift", "p"]
    lines = []
    for name, arm in findings["arms"].items():
        line = [name]
        for slice_ in SHOWN:
            lift = arm.get("lift", {}).get(slice_)
            way = "" if lift is None else _way_words(lift)
            signed = "" if lift is None else _signed(_mean_of(lift["by_seed"], "auc")) + way
            line += [_spread(arm["slices"][slice_]["auc"]), signed, "" if lift is None else _p(lift["auc"])]
        lines.append(line)
    if findings["bayes"] is not None:
        best = findings["bayes"]["slices"]
        lines.append(["best possible", *(word for name in SHOWN for word in (_number(best[name]), "", ""))])
    return _markdown(heads, lines)


def _way_words(lift: Content) -> str:
    share = lift.get("share_of_the_way")
    return "" if share is None or share["mean"] is None else f" ({share['mean']:.0%} of the way)"


def _seed_table(arms: Content) -> list[str]:
    lines = []
    for name, arm in arms.items():
        for seed, found in arm.get("lift", {}).get("overall", {"by_seed": {}})["by_seed"].items():
            delong = found["delong"]
            bounds = "" if delong is None else f"{_signed(delong['low'])} to {_signed(delong['high'])}"
            auc, base = _number(found["auc"]), _number(found["auc_base"])
            lines.append([name, seed, auc, base, _signed(found["auc_difference"]), bounds, _p(delong)])
    return _markdown(["arm", "seed", "AUC", "base", "lift", "95 %", "p"], lines)


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _spread(content: Content) -> str:
    sd = "" if content["sd"] is None else f" ± {content['sd']:.4f}"
    return _number(content["mean"]) + sd


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2%}"


def _p(test: Content | None) -> str:
    if test is None:
        return ""
    return "<.0001" if test["p"] < 0.0001 else f"{test['p']:.4f}"


def draw(findings: Content) -> str:
    """The lift of each arm, overall and by slice, with its interval over seeds, as SVG; without a lift, the AUCs."""
    lifted = {name: arm["lift"] for name, arm in findings["arms"].items() if "lift" in arm}
    if not lifted:
        rows = [Bar(name, arm["auc"]["mean"] or 0.0) for name, arm in findings["arms"].items()]
        return _standalone(bars("AUC by arm", rows, Axis("AUC", low=0.0, high=1.0), digits=4))
    rows = [
        Bar(f"{name}: {SHOWN.get(part, part)}", *_estimate(found))
        for name, lift in lifted.items()
        for part, found in lift.items()
        if _mean_of(found["by_seed"], "auc") is not None
    ]
    return _standalone(intervals("Lift in AUC over the base", rows, Axis("difference in AUC")))


def _estimate(found: Content) -> tuple[float, float | None, float | None]:
    """The lift with its interval over seeds; of one seed, DeLong's."""
    test = found["auc"] or next(iter(found["by_seed"].values()))["delong"]
    mean = _mean_of(found["by_seed"], "auc")
    assert mean is not None  # noqa: S101  (rows without a lift are not drawn)
    return (mean, None, None) if test is None else (mean, test["low"], test["high"])


def _standalone(svg: str) -> str:
    """The chart as a file of its own: in a page the page's style sheet would do this."""
    style = "text{font:12px sans-serif;fill:#222}.grid{stroke:#ddd}.axis{stroke:#555}"
    opened, rest = svg.split(">", 1)
    return f'{opened} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'
