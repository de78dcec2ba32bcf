"""Score every arm and the champion on the same test rows, and write down what that says."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset.errors import UserError
from components.dataset.spec import IMPRESSION_ID
from components.dataset.training_set import SplitArrays, TrainingSet
from components.evaluate.degradation import degradation
from components.evaluate.lift import COLLABORATIVE, cost, lift
from components.evaluate.scoring import (
    Champion,
    WithNewRows,
    arm_scorer,
    maps_rows,
    score_champion,
    scores_with_new_rows,
    scores_with_text,
    text_scores,
)
from components.evaluate.settings import EvaluateSettings
from components.evaluate.slices import Mask, slices
from components.evaluate.summary import curves, summarise
from components.run import aside, data_home, steps_behind, write_json
from components.training.metrics import Floats, auc

log = logging.getLogger("tandem.evaluate")

Content = dict[str, Any]
TEST = "test"
CHAMPION = "champion"
SAMPLE = "sample"
#: What is said of an arm once the test part's newcomers have rows.
NEW_ROWS = "with_new_rows"


@dataclass(frozen=True)
class _Rows:
    """The test rows that everything is measured on."""

    data: TrainingSet
    arrays: SplitArrays
    impressions: Any
    masks: Mapping[str, Mask]
    settings: EvaluateSettings

    @classmethod
    def read(cls, path: Path, settings: EvaluateSettings) -> _Rows:
        data = TrainingSet.open(path)
        arrays = data.arrays(TEST)
        impressions = data.table(TEST, [IMPRESSION_ID])[IMPRESSION_ID]
        return cls(data, arrays, impressions, slices(data, TEST, arrays, settings.slice_values), settings)

    def summary(self, scores: Floats) -> Content:
        return summarise(self.arrays, scores, self.masks)

    def lift(self, scores: Floats, base: Floats) -> Content:
        return lift(self.arrays, scores, base, self.masks, self.settings)

    def curves(self, scores: Floats) -> Content:
        return curves(self.arrays, scores, self.settings)


def evaluate(
    training_set: Path,
    arms: dict[str, Path],
    candidate: str,
    output: Path,
    settings: EvaluateSettings,
    champion: Path | None = None,
    prompts: Path | None = None,
    embeddings: Sequence[Path] = (),
) -> Content:
    """Measure the arms on the test part and write the evaluation's folder.

    Every arm is measured as it is served on the day of training: whoever training did not show is unknown. An arm that
    has learnt to make rows of texts is also measured with rows for the test part's new users and items, as a
    materialisation will give them (`with_new_rows`), if their texts are at hand. The gate judges the former, but for
    the lift over a champion that has been given such rows.

    Args:
        training_set: Folder of the retrieve step.
        arms: Each arm's name and the folder of its finetuned checkpoint.
        candidate: The arm that would be promoted.
        output: Folder written: metrics.json, curves.json, lift.json, degradation.json, scores_<arm>.parquet, and
            scores_<arm>_with_new_rows.parquet.
        settings: How to measure.
        champion: Folder of the registered champion's bundle, where there is one.
        prompts: The prompt_transform step's folder, for arms that score with the PLM or make rows of texts.
        embeddings: The encode step's folders, for arms that make rows of texts.

    Returns:
        The content of metrics.json, and of curves.json under 'curves'. Of an arm with new rows `with_new_rows` holds
        what is said of every arm, and `new`: the rows given, by side; and so does its lift.

    Raises:
        UserError: the candidate is no arm, or scores with the PLM, or an arm belongs to another training set.
        ScoreError: an arm's scores are NaN or no probabilities.
    """
    if candidate not in arms:
        raise UserError(f"candidate '{candidate}' is no arm; write one of {', '.join(sorted(arms))}")
    by_text = {arm for arm, path in arms.items() if scores_with_text(path)}
    if candidate in by_text:
        raise UserError(f"candidate '{candidate}' scores with the PLM, and cannot be served; train it by strategy id")
    rows = _Rows.read(training_set, settings)
    scorers = {
        arm: arm_scorer(arm, path, rows.data.layout, settings) for arm, path in arms.items() if arm not in by_text
    }
    scores = {arm: scorer(rows.arrays.ids) for arm, scorer in scorers.items()}
    scores |= {arm: text_scores(arm, arms[arm], prompts, rows.data, TEST) for arm in arms if arm in by_text}
    grown = _grown(rows, arms, prompts, embeddings)
    beaten = None if champion is None else score_champion(champion, rows.data.table(TEST), settings.batch_size)
    content = _metrics(rows, scores, grown, candidate, beaten)
    if beaten is not None and beaten.probabilities is not None:
        scores[CHAMPION] = beaten.probabilities
    drawn = _curves(rows, scores)
    worse = degradation(rows.data, rows.arrays, scorers[candidate], settings) if settings.degradation else None
    ledger = {**_ledger(rows, scores, grown, content), "cost": cost(steps_behind([training_set, *arms.values()]))}
    scores |= {f"{arm}_{NEW_ROWS}": found.probabilities for arm, found in grown.items()}
    _write(output, rows, scores, {"metrics": content, "curves": drawn, "lift": ledger, "degradation": worse})
    return {**content, "curves": drawn}


def _grown(
    rows: _Rows, arms: Mapping[str, Path], prompts: Path | None, embeddings: Sequence[Path]
) -> dict[str, WithNewRows]:
    """The scores of the arms that make rows of texts, with rows for the test part's newcomers."""
    able = {arm: path for arm, path in arms.items() if maps_rows(path)}
    if not able:
        return {}
    if prompts is None or not embeddings:
        log.warning("arm %s makes rows of texts, and is given none: no scores with new rows", ", ".join(able))
        return {}
    given = prompts, list(embeddings), rows.data, TEST, rows.settings.batch_size
    return {arm: scores_with_new_rows(arm, path, *given) for arm, path in able.items()}


def _metrics(
    rows: _Rows,
    scores: Mapping[str, Floats],
    grown: Mapping[str, WithNewRows],
    candidate: str,
    champion: Champion | None,
) -> Content:
    found = {arm: rows.summary(values) for arm, values in scores.items()}
    for arm, summary in found.items():
        log.info("arm %s: AUC %s on %d test rows", arm, _said(summary["auc"]), summary["rows"])
    for arm, larger in grown.items():
        summary = {"new": larger.new, **rows.summary(larger.probabilities)}
        new = ", ".join(f"{count} new {side}s" for side, count in larger.new.items())
        said = (_said(of["auc"]) for of in (summary, summary["slices"]["cold"], found[arm]["slices"]["cold"]))
        log.info("arm %s with rows for %s: AUC %s; on cold rows %s, without them %s", arm, new, *said)
        found[arm][NEW_ROWS] = summary
    compared = COLLABORATIVE in scores and candidate != COLLABORATIVE
    gain = {"over": COLLABORATIVE, **_lift(rows, scores, grown, candidate)} if compared else None
    return {
        "dataset": rows.data.spec.name,
        "rows": len(rows.arrays.labels),
        "candidate": candidate,
        "arms": found,
        "lift": gain,
        "champion": None if champion is None else _champion(rows, scores[candidate], grown.get(candidate), champion),
        "bayes_auc": bayes_auc(rows.data, rows.arrays, rows.impressions),
    }


def _lift(rows: _Rows, scores: Mapping[str, Floats], grown: Mapping[str, WithNewRows], arm: str) -> Content:
    """The lift of an arm over the collaborative-only one, and its lift with new rows where it has any."""
    base = scores[COLLABORATIVE]
    more = {NEW_ROWS: rows.lift(grown[arm].probabilities, base)} if arm in grown else {}
    return {**rows.lift(scores[arm], base), **more}


def _said(value: float | None) -> str:
    return "undefined (one class)" if value is None else f"{value:.4f}"


def _champion(rows: _Rows, candidate: Floats, larger: WithNewRows | None, champion: Champion) -> Content:
    """The champion's metrics on the candidate's rows and the candidate's lift over it, or why there are none.

    A champion that a materialisation has given rows since knows users and items that are new to both trainings; the
    candidate is then compared with the rows that it would be given (`compared_with_new_rows`).
    """
    names = {key: champion.manifest.get(key) for key in ("name", "run_id", "backbone", "arm")}
    if champion.probabilities is None:
        log.warning("the champion cannot be compared: %s", champion.reason)
        return {**names, "compatible": False, "reason": champion.reason, "lift": None, "compared_with_new_rows": False}
    summary = rows.summary(champion.probabilities)
    log.info("champion: AUC %s on the same rows", _said(summary["auc"]))
    own = larger if champion.manifest.get("lineage", {}).get("rows") else None
    gain = rows.lift(own.probabilities if own else candidate, champion.probabilities)
    compared = {"lift": gain, "compared_with_new_rows": own is not None}
    return {**names, "compatible": True, "reason": None, **summary, **compared}


def bayes_probabilities(data: TrainingSet, impressions: Any) -> Floats | None:
    """The probabilities [n] that the sample's labels were drawn from; None for any other data set."""
    path = data_home() / SAMPLE / "truth.parquet"
    if data.spec.name != SAMPLE or not path.is_file():
        return None
    truth = pq.read_table(path, columns=[IMPRESSION_ID, "probability"]).sort_by(IMPRESSION_ID)
    known, wanted = truth[IMPRESSION_ID].to_numpy(), impressions.to_numpy()
    places = np.searchsorted(known, wanted).clip(0, len(known) - 1)
    # A data set of the same name with rows of its own has no known truth.
    if not (known[places] == wanted).all():
        return None
    return np.asarray(truth["probability"].to_numpy()[places], dtype=np.float64)


def bayes_auc(data: TrainingSet, rows: SplitArrays, impressions: Any) -> float | None:
    """The best possible AUC on these rows of the sample; None for any other data set."""
    truth = bayes_probabilities(data, impressions)
    return None if truth is None else auc(rows.labels, truth)


def _curves(rows: _Rows, scores: Mapping[str, Floats]) -> Content:
    drawn = {name: rows.curves(values) for name, values in scores.items()}
    champion = drawn.pop(CHAMPION, None)
    return {"arms": drawn, "champion": champion}


def _ledger(rows: _Rows, scores: Mapping[str, Floats], grown: Mapping[str, WithNewRows], content: Content) -> Content:
    """The lift of every arm over the collaborative-only one."""
    others = [arm for arm in content["arms"] if arm != COLLABORATIVE] if COLLABORATIVE in scores else []
    known = {content["candidate"]: content["lift"]}
    lifts = {arm: known.get(arm) or _lift(rows, scores, grown, arm) for arm in others}
    return {"over": COLLABORATIVE, "candidate": content["candidate"], "arms": lifts}


def _write(output: Path, rows: _Rows, scores: Mapping[str, Floats], contents: Mapping[str, Content | None]) -> None:
    labels = pa.array(rows.arrays.labels.astype(np.int8))
    with aside(output) as draft:
        draft.mkdir(parents=True)
        for name, content in contents.items():
            if content is not None:
                write_json(draft / f"{name}.json", content)
        for name, values in scores.items():
            table = pa.table({"impression_id": rows.impressions, "label": labels, "probability": pa.array(values)})
            pq.write_table(table, draft / f"scores_{name}.parquet")
