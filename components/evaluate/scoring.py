"""Probabilities from the arms' checkpoints (torch) and from the champion's bundle (ONNX Runtime)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.dataset.bundle import ROW_MAPS, Bundle, BundleError
from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.dataset.training_set import TrainingSet
from components.evaluate.settings import EvaluateSettings
from components.training.metrics import Floats

#: Probabilities [n] of ids [n, width].
Scorer = Callable[[npt.NDArray[Any]], Floats]


class ScoreError(ValueError):
    """An arm's model gave something that is no probability; none of its metrics could be trusted."""


@dataclass(frozen=True)
class WithNewRows:
    """An arm's probabilities with rows for a part's new users and items, and by side how many rows that are."""

    probabilities: Floats
    new: dict[str, int]


@dataclass(frozen=True)
class Champion:
    """The champion's probabilities on the candidate's rows, or the reason why there are none."""

    manifest: dict[str, Any]
    probabilities: Floats | None
    reason: str | None


def arm_scorer(arm: str, checkpoint: Path, layout: InputLayout, settings: EvaluateSettings) -> Scorer:
    """A function that scores ids with an arm's model.

    Raises:
        UserError: the model was trained on other fields or another vocabulary.
    """
    import torch

    from components.training.checkpoints import load_model
    from components.training.device import pick_device
    from components.training.loop import predict

    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = load_model(checkpoint)
    if model.layout != (layout if model.reads_history else layout.without_history()):
        raise _stranger(arm, checkpoint)
    model = model.to(pick_device())

    def score(ids: npt.NDArray[Any]) -> Floats:
        # The history lies behind the fields: a model that does not read it takes the columns before.
        return sound(f"arm '{arm}'", predict(model, ids[:, : model.layout.width], settings.batch_size))

    return score


def maps_rows(checkpoint: Path) -> bool:
    """Whether an arm has learnt to make rows of new users' or items' texts."""
    return (checkpoint / ROW_MAPS).is_file()


def scores_with_new_rows(
    arm: str, checkpoint: Path, prompts: Path, embeddings: list[Path], data: TrainingSet, part: str, batch_size: int
) -> WithNewRows:
    """Score a part's rows as a materialisation after that part would have them scored.

    Every user and item of the part that the vocabulary does not know gets the row that the arm's map makes of its
    text; whoever is known is scored as before. No label is read.

    Args:
        arm: The arm's name.
        checkpoint: Folder of its finetuned checkpoint, with the maps beside it.
        prompts: The prompt_transform step's folder.
        embeddings: The encode step's folders.
        data: The training set.
        part: train, valid or test.
        batch_size: Rows scored at once.

    Raises:
        UserError: the arm was trained on another training set, or has no maps, or the embeddings are not the prompts'.
        ScoreError: a score is NaN or no probability.
    """
    import torch

    from components.training.checkpoints import load_model
    from components.training.device import pick_device
    from components.training.growth import NewRows, grown_for
    from components.training.loop import predict
    from components.training.texts import read_texts

    model, maps = load_model(checkpoint), NewRows.load(checkpoint)
    data = data.for_model(model.reads_history)
    if model.layout != data.layout:
        raise _stranger(arm, checkpoint)
    # Growing copies single rows: only the scoring is worth a device.
    texts, _ = read_texts(prompts, embeddings, torch.device("cpu"))
    grown, vocabulary = grown_for(model, maps, data, texts, part)
    new = {side: _values(vocabulary.layout, side) - _values(data.layout, side) for side in sorted(maps.sides)}
    table = data.table(part, list(vocabulary.columns))
    ids = vocabulary.encode({name: table[name] for name in table.column_names})
    return WithNewRows(sound(f"arm '{arm}'", predict(grown.to(pick_device()), ids, batch_size)), new)


def _values(layout: InputLayout, side: str) -> int:
    """How many values the id of a side has."""
    from components.training.newcomers import id_field

    return id_field(layout, side).slots.size


def _stranger(arm: str, checkpoint: Path) -> UserError:
    return UserError(f"arm '{arm}': {checkpoint} was trained on another training set; run finetune again")


def text_scores(arm: str, checkpoint: Path, prompts: Path | None, data: TrainingSet, part: str) -> Floats:
    """Probabilities [n] of a part's rows by an arm that scores with the PLM.

    Raises:
        UserError: the prompts are not given, or the arm was trained on another training set.
    """
    from components.training.device import pick_device
    from components.training.strategies import load_text_learner

    if prompts is None:
        raise UserError(
            f"arm '{arm}' scores with the PLM, which reads prompts; give the prompt_transform step's folder"
        )
    learner = load_text_learner(checkpoint, prompts, part, pick_device())
    data = data.for_model(learner.model.reads_history)
    if learner.model.layout != data.layout:
        raise _stranger(arm, checkpoint)
    return sound(f"arm '{arm}'", learner.predict(part, data.arrays(part).ids))


def scores_with_text(checkpoint: Path) -> bool:
    """Whether an arm's score needs the PLM."""
    from components.training.strategies import ID, strategy_of

    needed: bool = strategy_of(checkpoint) != ID
    return needed


def sound(name: str, probabilities: npt.ArrayLike) -> Floats:
    """The probabilities of an arm as float64 [n].

    Raises:
        ScoreError: one of them is NaN or lies outside [0, 1].
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if fault := unsound(values):
        raise ScoreError(f"{name}: {fault}; its training diverged")
    return values


def unsound(scores: Floats) -> str | None:
    """What is wrong with scores [n] that are to be probabilities; None where nothing is."""
    bad = int((~((scores >= 0) & (scores <= 1))).sum())
    return f"{bad} of {scores.size} scores are NaN or no probabilities" if bad else None


def score_champion(path: Path, table: pa.Table, batch_size: int) -> Champion:
    """Score raw rows with a bundle, on one thread; a bundle that cannot score them is said, not raised.

    Args:
        path: The bundle's folder.
        table: Raw feature columns, n rows.
        batch_size: Rows scored at once.
    """
    try:
        bundle = Bundle.open(path)
    except BundleError as error:
        return Champion({}, None, f"its bundle cannot be read: {error}")
    try:
        ids = bundle.encode({name: table[name] for name in table.column_names})
    except (UserError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return Champion(bundle.manifest, None, f"its features are not those of the rows: {error}")
    scores = _run_onnx(bundle.model_path, ids, batch_size)
    fault = unsound(scores)
    return Champion(bundle.manifest, None if fault else scores, fault)


def _run_onnx(model: Path, ids: npt.NDArray[np.int64], batch_size: int) -> Floats:
    from components.dataset.scoring import WholeModel

    whole = WholeModel(model)
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    return np.concatenate([whole.probabilities(batch) for batch in batches], dtype=np.float64)
