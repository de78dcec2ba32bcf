"""What the report shows: charts and tables from the files that the run's steps have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.register.charts import Axis, Bar, Series, bars, histogram, intervals, lines
from components.run import StepRecord

Content = Mapping[str, Any]
#: Metrics of an arm, as the report names them.
METRICS = {
    "auc": "AUC",
    "logloss": "log loss",
    "gauc": "GAUC",
    "calibration": "calibration",
    "normalised_entropy": "normalised entropy",
    "pr_auc": "PR-AUC",
}
SLICES = {
    "warm": "warm",
    "cold": "cold (new user or item)",
    "new_users": "new users",
    "new_items": "new items",
    "long_tail": "long-tail items",
    "interactions_0": "user with 0 interactions",
    "interactions_1_5": "user with 1 to 5",
    "interactions_6_20": "user with 6 to 20",
    "interactions_over_20": "user with over 20",
}
CHAMPION = "champion"
WORST = 16
EPOCH_FIGURES = {
    "train_loss": "loss on the train part",
    "valid_auc": "AUC on the valid part",
    "valid_logloss": "log loss on the valid part",
}
#: Of a line of a training curve, what says when and how rather than how well.
NO_FIGURES = {"epoch", "step", "seconds", "learning_rate"}


def chain(steps: Sequence[StepRecord]) -> str:
    """The steps of the run, each with its seconds."""
    return bars("Seconds by step", [Bar(record.step, record.seconds) for record in steps], Axis("seconds", low=0))


def part_table(meta: Content) -> list[dict[str, Any]]:
    """For each part of the training set: its name, rows, share of positives, strangers, first time stamp."""
    told = {"label_rate": "label_rate", "new_users": "new_users", "new_items": "new_items", "cut_off": "cut_offs"}
    return [
        {"name": part, "rows": rows, **{name: meta.get(key, {}).get(part) for name, key in told.items()}}
        for part, rows in meta["rows"].items()
    ]


def tokens(report: Content) -> dict[str, str]:
    """Histogram of the texts' token counts, by side."""
    charts = {}
    for colour, (side, counted) in enumerate(report.get("tokens", {}).items()):
        bins = counted["histogram"]
        x, y = Axis("tokens", whole=True), Axis("texts per token count")
        charts[side] = histogram(f"Tokens of {side} texts", bins["edges"], bins["counts"], x, y, colour)
    return charts


def training(curves: Mapping[str, Content]) -> dict[str, str]:
    """Figures over the epochs, a line for each arm and the chosen epoch marked; by the figure's name."""
    names = list(dict.fromkeys(name for curve in curves.values() for name in figures_of(curve)))
    charts = {}
    for name in names:
        series = [_epochs(arm, curve, name) for arm, curve in curves.items() if name in figures_of(curve)]
        title = EPOCH_FIGURES.get(name, name.replace("_", " "))
        charts[title] = lines(f"{title} by epoch", series, Axis("epoch", whole=True), Axis(title))
    return charts


def figures_of(curve: Content) -> list[str]:
    """Names of the figures that a training curve has of its epochs."""
    first = curve["history"][0] if curve["history"] else {}
    return [name for name, value in first.items() if name not in NO_FIGURES and isinstance(value, int | float)]


def _epochs(arm: str, curve: Content, name: str) -> Series:
    points = [
        (float(line.get("epoch", place)), float(line[name]))
        for place, line in enumerate(curve["history"], start=1)
        if line.get(name) is not None
    ]
    marked = [point for point in points if point[0] == curve.get("best_epoch")]
    return Series(arm, points, marked[0] if marked else None, dots=len(points) < 20)


def roc(curves: Content) -> str | None:
    """ROC curves of the arms and of the champion."""
    named = _named_curves(curves, "roc")
    series = [
        Series(name, list(zip(c["fpr"], c["tpr"], strict=True)), reference=name == CHAMPION)
        for name, c in named.items()
    ]
    x, y = Axis("false positive rate", 0, 1), Axis("true positive rate", 0, 1)
    return lines("ROC curves", series, x, y, diagonal=True) if series else None


def reliability(curves: Content) -> str | None:
    """Observed over predicted click probability, in bins of equal mass."""
    named = _named_curves(curves, "reliability")
    series = [
        Series(name, list(zip(c["predicted"], c["observed"], strict=True)), dots=True, reference=name == CHAMPION)
        for name, c in named.items()
    ]
    reach = max((value for one in series for point in one.points for value in point), default=1.0)
    x, y = Axis("mean predicted probability", 0, reach), Axis("observed share of positives", 0, reach)
    return lines("Reliability curves", series, x, y, diagonal=True) if series else None


def _named_curves(curves: Content, kind: str) -> dict[str, Content]:
    champion = {CHAMPION: curves["champion"]} if curves.get("champion") else {}
    return {name: of[kind] for name, of in {**curves["arms"], **champion}.items() if of.get(kind)}


def arms(metrics: Content) -> dict[str, Content]:
    """Figures by the name of the arm; behind an arm those that it has with new rows, if it makes any."""
    found: dict[str, Content] = {}
    for name, figures in metrics["arms"].items():
        found[name] = figures
        if "with_new_rows" in figures:
            found[f"{name} with new rows"] = figures["with_new_rows"]
    return found


def scored(metrics: Content) -> dict[str, Content]:
    """Figures by the name of the arm, the champion's last where it could be scored."""
    champion = metrics.get("champion")
    return {**arms(metrics), **({CHAMPION: champion} if champion and champion.get("compatible") else {})}


def newcomers(metrics: Content) -> dict[str, str]:
    """For each arm that is also scored with new rows, for whom they are, in words."""
    grown = {name: figures["with_new_rows"] for name, figures in metrics["arms"].items() if "with_new_rows" in figures}
    return {
        name: " and ".join(f"{count:,} new {side}s" for side, count in found["new"].items())
        for name, found in grown.items()
    }


def slice_table(metrics: Content) -> list[dict[str, Any]]:
    """For each slice with rows: its name, rows, and AUC by arm."""
    columns = scored(metrics)
    known = metrics["arms"][metrics["candidate"]]["slices"]
    ordered = [*(name for name in SLICES if name in known), *(name for name in known if name not in SLICES)]
    return [
        {
            "name": SLICES.get(name, name),
            "rows": known[name]["rows"],
            "label_rate": known[name].get("label_rate"),
            "auc": {arm: figures["slices"].get(name, {}).get("auc") for arm, figures in columns.items()},
        }
        for name in ordered
        if known[name]["rows"]
    ]


#: The interval of a smaller slice is so wide that no other could be read beside it.
LIFT_ROWS = 100


def lift_chart(lift: Content) -> str:
    """The lift in AUC with its interval, over all rows and by slice of at least LIFT_ROWS rows."""
    rows = [_lift_bar("all rows", lift["overall"])]
    known = [name for name in SLICES if lift["slices"].get(name, {}).get("rows", 0) >= LIFT_ROWS]
    rows += [_lift_bar(SLICES[name], lift["slices"][name]) for name in known]
    title = f"difference in AUC, {lift['confidence']:.0%} interval (DeLong)"
    return intervals("Lift by slice", [row for row in rows if row], Axis(title))


def _lift_bar(name: str, compared: Content) -> Bar | None:
    difference = compared.get("auc_difference")
    found = compared.get("delong") or {}
    return None if difference is None else Bar(name, difference, found.get("low"), found.get("high"))


def lift_table(lift: Content) -> list[dict[str, Any]]:
    """Lift over all rows, warm and cold: AUCs, difference, every interval, RelaImpr."""
    shown = {"all rows": lift["overall"], **{name: lift["slices"].get(name) for name in ("warm", "cold")}}
    return [{"name": name, **compared} for name, compared in shown.items() if compared and compared["rows"]]


def degradation(worse: Content) -> dict[str, str]:
    """What it costs in AUC when something is missing, and when something is stale; the dearest first."""
    known = [line for line in worse["table"] if line["auc_loss"] is not None]
    groups = {
        "AUC lost with this missing": [line for line in known if not line["lag"]],
        "AUC lost with this stale": [line for line in known if line["lag"]],
    }
    return {
        title: bars(title, [Bar(_short(line), line["auc_loss"]) for line in lines[:WORST]], Axis("AUC lost"), digits=4)
        for title, lines in groups.items()
        if lines
    }


def _case(line: Content) -> str:
    return f"{_what(line)} {line['as']}" + (f" by {_lag(line)}" if line["lag"] else "")


def _short(line: Content) -> str:
    """A case in the words that a bar has room for, whose chart says that all in it is stale."""
    return f"{_what(line)}, {_lag(line)}" if line["lag"] else _case(line)


def _what(line: Content) -> str:
    return {"view": "view ", "row": "whole row of the "}.get(line["kind"], "") + str(line["name"])


def _lag(line: Content) -> str:
    return f"a{'n' if line['lag'] == 'hour' else ''} {line['lag']}"


def degradation_table(worse: Content) -> list[dict[str, Any]]:
    """Every case in words, with its figures."""
    return [{"case": _case(line), **line} for line in worse["table"]]


def default_values(worse: Content) -> dict[str, str]:
    """The value put in for each field that does better with one than without."""
    found = {name: one["value"] for name, one in worse["defaults"].items() if one["default"] != "missing"}
    return {name: words(value) for name, value in found.items()}


def words(value: Any) -> str:
    """A value of a setting or a field for a reader."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(words(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; what rounds to nothing has none of its own."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def number(value: float, digits: int = 4) -> str:
    """A figure; what rounds to nothing has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def health_table(health: Content) -> list[dict[str, Any]]:
    """Each measure of alignment health before and after."""
    after = {name: value for name, value in health["after"].items() if isinstance(value, int | float)}
    return [
        {"name": name.replace("_", " "), "before": health["before"].get(name), "after": value}
        for name, value in after.items()
        if name != "rows"
    ]
