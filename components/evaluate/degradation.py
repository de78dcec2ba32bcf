"""The degradation table: the candidate re-scored with features missing or stale, and the defaults that follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.dataset.layout import FieldSlots, InputLayout
from components.dataset.spec import Kind
from components.dataset.training_set import SplitArrays, TrainingSet
from components.dataset.vocabulary import FieldVocabulary
from components.evaluate.inputs import Ids, Log, Numbers, Slots, changing, views, whole_rows, without
from components.evaluate.scoring import Scorer
from components.evaluate.settings import EvaluateSettings
from components.training import metrics
from components.training.metrics import Floats

Content = dict[str, Any]

LAGS = {"hour": 3_600, "day": 86_400, "week": 604_800}
MICROSECONDS = 1_000_000
STALE_NOTE = (
    "A stale row has the values of the first row of its user (item) later than its own moment less the lag: exact for "
    "the history, which changes with impressions only, but for its time gaps, which are that row's; what changes in a "
    "profile or falls out of a window of counts "
    "between that moment and that row is not seen."
)
NO_TIME_NOTE = "The data set has no time stamps: nothing in it can be stale."
UNREAD_NOTE = "The model does not read: "
CONSTANT_NOTE = "Does not change over time, and so cannot be stale: "


@dataclass(frozen=True)
class _Case:
    """One way in which the model's input is worse than it should be."""

    kind: str
    name: str
    how: str
    slots: Slots
    ids: Ids
    lag: str | None = None

    def said(self) -> Content:
        fields = [slots.name for slots in self.slots]
        return {"kind": self.kind, "name": self.name, "as": self.how, "lag": self.lag, "fields": fields}


@dataclass(frozen=True)
class _Sample:
    """Rows of a part that are re-scored, by their numbers in it, and their scores with everything in place."""

    rows: Numbers
    ids: Ids
    labels: npt.NDArray[np.float32]
    scores: Floats


def degradation(data: TrainingSet, test: SplitArrays, scorer: Scorer, settings: EvaluateSettings) -> Content:
    """AUC, log loss and calibration with each feature, each view and a user's or item's whole row missing or stale.

    Every line is measured on the same drawn test rows; only rows whose input changes are scored again.

    Returns:
        'rows', 'complete' (nothing missing), 'table' (the dearest first), 'defaults' by field, 'notes'.
    """
    sample = _draw(test, scorer, settings)
    complete = _measured(sample.labels, sample.scores)
    missing = [_degraded(sample, case, complete, scorer) for case in _missing(data, sample)]
    unread = _unread(missing, complete)
    # Reading the log anew is dear, and of no use where nothing that the model reads can grow old.
    old = {name: slots for name, slots in changing(data).items() if name not in unread}
    stale = [_degraded(sample, case, complete, scorer) for case in (_stale(data, old, test, sample) if old else ())]
    moving = {(line["kind"], line["name"]) for line in stale if line["changed"] > 0}
    constant = _constant(data, old, moving)
    table = [*missing, *(line for line in stale if (line["kind"], line["name"]) in moving)]
    table.sort(key=lambda line: (-(line["auc_loss"] or 0.0), line["kind"], line["name"]))
    notes = [NO_TIME_NOTE] if data.spec.keys.timestamp is None else [STALE_NOTE] if moving else []
    notes += [note + ", ".join(names) for note, names in ((CONSTANT_NOTE, constant), (UNREAD_NOTE, unread)) if names]
    return {
        "rows": len(sample.rows),
        "complete": complete,
        "table": table,
        "defaults": defaults(data, scorer, settings),
        "notes": notes,
    }


def _unread(lines: list[Content], complete: Content) -> list[str]:
    """Views that the model does not look at: a backbone without a sequence part does not read the history."""
    views_ = [line for line in lines if line["kind"] == "view" and line["changed"] > 0]
    # Not to the last bit: a row's score depends a little on the rows that it is scored with.
    return sorted(line["name"] for line in views_ if math.isclose(line["logloss"], complete["logloss"], rel_tol=1e-7))


def _constant(data: TrainingSet, old: Mapping[str, Slots], moving: Set[tuple[str, str]]) -> list[str]:
    """Views that are the same however long ago one looks; none are said to be where there is no time."""
    if data.spec.keys.timestamp is None:
        return []
    profiles = {name for name in views(data) if name.endswith("_profile")} - set(changing(data))
    return sorted(profiles | {name for name in old if ("view", name) not in moving})


def _draw(rows: SplitArrays, scorer: Scorer, settings: EvaluateSettings) -> _Sample:
    count = min(len(rows.labels), settings.degradation_rows)
    chosen = np.sort(np.random.default_rng(settings.seed).permutation(len(rows.labels))[:count])
    ids = rows.ids[chosen]
    return _Sample(chosen, ids, rows.labels[chosen], scorer(ids))


def _measured(labels: npt.NDArray[np.float32], scores: Floats) -> Content:
    measures = {"auc": metrics.auc, "logloss": metrics.logloss, "calibration": metrics.calibration}
    return {name: measure(labels, scores) for name, measure in measures.items()}


def _degraded(sample: _Sample, case: _Case, complete: Content, scorer: Scorer) -> Content:
    changed, scores = _rescored(sample, case.ids, scorer)
    found = _measured(sample.labels, scores)
    loss = None if found["auc"] is None else complete["auc"] - found["auc"]
    return {**case.said(), "changed": float(changed.mean()), **found, "auc_loss": loss}


def _rescored(sample: _Sample, ids: Ids, scorer: Scorer) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Which rows the changed ids change, and the scores of all of them."""
    changed = (ids != sample.ids).any(axis=1)
    scores = sample.scores.copy()
    if changed.any():
        scores[changed] = scorer(ids[changed])
    return changed, scores


def _missing(data: TrainingSet, sample: _Sample) -> Iterator[_Case]:
    layout = data.layout
    for slots in layout.fields:
        how = "unknown" if slots.kind == Kind.ID else "missing"
        yield _Case("feature", slots.name, how, (slots,), without(layout, sample.ids, (slots,)))
    for name, members in views(data).items():
        yield _Case("view", name, "missing", members, without(layout, sample.ids, members))
    for side, members in whole_rows(layout).items():
        yield _Case("row", side, "missing", members, without(layout, sample.ids, members))


def _stale(data: TrainingSet, old: Mapping[str, Slots], test: SplitArrays, sample: _Sample) -> Iterator[_Case]:
    log = Log.read(data)
    here = len(log.ids) - len(test.ids) + sample.rows
    for side in log.keys:
        timeline = log.timeline(side)
        aged = list(_aged(side, old))
        for lag, seconds in LAGS.items() if aged else ():
            earlier = log.ids[timeline.first_after(here, seconds * MICROSECONDS)]
            for kind, name, members in aged:
                ids = sample.ids.copy()
                for slots in members:
                    ids[:, slots.start : slots.stop] = earlier[:, slots.start : slots.stop]
                yield _Case(kind, name, "stale", members, ids, lag)


def _aged(side: str, old: Mapping[str, Slots]) -> Iterator[tuple[str, str, Slots]]:
    """Kind, name and columns of all that can grow old of a side: features, views, and all of them together.

    The columns of a history are those of the same events and grow old together.
    """
    mine = {name: members for name, members in old.items() if name.startswith(f"{side}_")}
    for name, members in mine.items():
        if name != "user_history":
            yield from (("feature", slots.name, (slots,)) for slots in members)
        yield "view", name, members
    if mine:
        yield "row", side, tuple(slots for members in mine.values() for slots in members)


def defaults(data: TrainingSet, scorer: Scorer, settings: EvaluateSettings) -> Content:
    """For each field what to put in where its value is missing: nothing, or its most frequent value.

    Chosen by the AUC with the field missing everywhere, on rows of the valid part; a tie leaves it missing.
    A key has no default.
    """
    sample = _draw(data.arrays("valid"), scorer, settings)
    fields = [field for field in data.vocabulary.fields if field.kind is not Kind.ID]
    return {field.name: _default(data.layout, field, sample, scorer) for field in fields}


def _default(layout: InputLayout, field: FieldVocabulary, sample: _Sample, scorer: Scorer) -> Content:
    slots, value = layout.field(field.name), most_frequent(field)
    missing = without(layout, sample.ids, (slots,))
    auc_missing = metrics.auc(sample.labels, _rescored(sample, missing, scorer)[1])
    auc_filled = None
    if value is not None:
        filled = _filled(missing, slots, int(field.encode([value]).flat[0]))
        auc_filled = metrics.auc(sample.labels, _rescored(sample, filled, scorer)[1])
    better = auc_filled is not None and auc_missing is not None and auc_filled > auc_missing
    return {
        "default": "most_frequent" if better else "missing",
        "value": value if better else None,
        "auc_missing": auc_missing,
        "auc_most_frequent": auc_filled,
    }


def _filled(ids: Ids, slots: FieldSlots, code: int) -> Ids:
    changed = ids.copy()
    changed[:, slots.start] = slots.offset + code
    return changed


def most_frequent(field: FieldVocabulary) -> Any:
    """The raw value that is most frequent in the train part; of a number its middle edge; None where there is none."""
    if field.kind is Kind.NUMBER:
        return field.edges[len(field.edges) // 2] if field.edges else None
    if not field.values:
        return None
    return [field.values[0]] if field.kind is Kind.MULTI else field.values[0]
