"""One arm, one backbone, one seed: what its training reads and where its results are kept.

Everything that is made lies in a folder named after all that decides it. What is there is not made again, so that a
comparison goes on where it was stopped, and arms share what they have in common.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.dataset import embeddings, prompts, training_set, vocabulary
from components.dataset.catalog import load_spec
from components.dataset.errors import UserError
from components.dataset.spec import IMPRESSION_ID, ITEM_KEY, DatasetSpec
from components.dataset.splits import PARTS, held_out
from components.dataset.training_set import TrainingSet, write_training_set
from components.run import aside, read_json
from components.training import checkpoints
from components.training.metrics import Floats
from pipelines.settings import ALIGNED, FLIP, ID, PRETRAINED, RunSettings, Strategy

log = logging.getLogger("tandem.compare")

#: Settings of encode that change where and how fast vectors are made, and not the vectors.
ENCODE_RESOURCES = {"processes", "batch_tokens", "block", "cache", "device"}
#: The same of align and finetune; each task of a comparison is one process of one thread.
TRAINING_RESOURCES = {"processes", "nodes", "nodes_minutes", "threads", "checkpoint_minutes"}
ALONE = {"processes": 1, "nodes": 1}
#: Settings of reconstruct and finetune that decide what memory they take.
MEMORY = {"cache_megabytes"}
#: Settings of finetune that decide nothing where the collaborative half scores.
OF_THE_PLM = {"plm_learning_rate"}
#: What an older version kept in another format is made again.
FORMATS = [module.FORMAT for module in (training_set, vocabulary, prompts, embeddings, checkpoints)]


@dataclass(frozen=True)
class Store:
    """A folder of results, each under the digest of what decides it."""

    root: Path

    def place(self, kind: str, **decides: Any) -> Path:
        """The folder of a result of this kind; it may not be there yet."""
        content = json.dumps(decides, sort_keys=True, ensure_ascii=False)
        return self.root / kind / hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Trial:
    """One training of one arm, with the folders that it reads and writes.

    `group` is the backbone of the arms that it is compared with, its own unless the arm brings one. `pretrained` is
    None where the arm has no sequence encoder that is trained first, `aligned` where it is not aligned; prompts and
    embeddings where it meets no PLM at all, embeddings also where the PLM reads masked prompts, as FLIP's does.
    """

    arm: str
    group: str
    backbone: str
    seed: int
    settings: RunSettings
    training_set: Path
    prompts: Path | None
    embeddings: Path | None
    pretrained: Path | None
    aligned: Path | None
    trained: Path

    @property
    def start(self) -> Path | None:
        """What training on clicks begins with."""
        return self.aligned or self.pretrained

    def scores(self, part: str) -> Path:
        """The file with the trial's probabilities on a part."""
        return self.trained / f"scores_{part}.parquet"

    def curve(self) -> dict[str, Any]:
        """The training curve: best_epoch and history."""
        curve: dict[str, Any] = read_json(self.trained / "curve.json")
        return curve

    def alignment(self) -> str | None:
        """The verdict of its alignment's health report; None where it is not aligned with texts."""
        if self.aligned is None:
            return None
        verdict: str = read_json(self.aligned / "health.json")["verdict"]
        return verdict

    def seconds(self) -> float:
        """Seconds of this trial's own training, stage 1 included; texts and encodings are shared and not counted."""
        folders = [path for path in (self.trained, self.aligned, self.pretrained) if path]
        return sum(float(line["seconds"]) for path in folders for line in read_json(path / "curve.json")["history"])

    def encoding_seconds(self) -> float | None:
        """Seconds that encoding the arm's texts takes, from the cache or not; None where it reads none."""
        if self.embeddings is None:
            return None
        cache = read_json(self.embeddings / "meta.json")["cache"]
        return float(cache["seconds"] + cache["seconds_saved"])


@dataclass(frozen=True)
class Task:
    """Something to be made: it is done when `output` is there, and can begin when `needs` is."""

    name: str
    output: Path
    needs: Path | None
    work: Callable[[], None]


def plan_trial(store: Store, arm: str, group: str, settings: RunSettings, training_set: Path) -> Trial:
    """Where everything of a trial lies."""
    strategy = strategy_of(arm, settings)
    unread = TRAINING_RESOURCES | MEMORY | (OF_THE_PLM if strategy == ID else set())
    finetune = settings.finetune.model_dump(mode="json", exclude=unread)
    network = {
        "data": training_set.name,
        "backbone": settings.backbone,
        "model": settings.model.model_dump(mode="json"),
        "seed": settings.seed,
    }
    prompts = embeddings = pretrained = aligned = None
    if settings.method in PRETRAINED:
        pretrain = settings.pretrain.model_dump(mode="json", exclude={"threads"})
        encoder = {**network, "model": settings.model.of_encoder().model_dump(mode="json")}
        pretrained = store.place("pretrained", **encoder, pretrain=pretrain)
    aligns = settings.method in ALIGNED
    if aligns or settings.method == FLIP or settings.reads_texts:
        prompts = store.place("prompts", data=training_set.name, prompt=settings.prompt.model_dump(mode="json"))
    if settings.method == FLIP and prompts is not None:
        reconstruct = settings.reconstruct.model_dump(mode="json", exclude=TRAINING_RESOURCES | MEMORY)
        aligned = store.place("reconstructed", **network, prompts=prompts.name, reconstruct=reconstruct)
    elif prompts is not None:
        encode = settings.encode.model_dump(mode="json", exclude=ENCODE_RESOURCES)
        embeddings = store.place("embeddings", prompts=prompts.name, encode=encode)
    if embeddings is not None and aligns:
        stage_1: dict[str, Any] = {"align": settings.align.model_dump(mode="json", exclude=TRAINING_RESOURCES)}
        stage_1 |= {"pretrained": pretrained.name} if pretrained else {}
        aligned = store.place("aligned", **network, embeddings=embeddings.name, **stage_1)
    start = aligned or pretrained
    read = {
        "start": start.name if start else None,
        "texts": embeddings.name if embeddings and settings.reads_texts else None,
    }
    # By strategy id everything is named as it is for the other methods.
    scored = {} if strategy == ID else {"strategy": strategy, "prompts": prompts.name if prompts else None}
    trained = store.place("trained", **network, finetune=finetune, **read, **scored)
    places = training_set, prompts, embeddings, pretrained, aligned, trained
    return Trial(arm, group, settings.backbone, settings.seed, settings, *places)


def strategy_of(arm: str, settings: RunSettings) -> Strategy:
    """The one strategy of an arm.

    Raises:
        UserError: it has several, or learns from encoded texts that FLIP has not.
    """
    if len(settings.strategies) > 1:
        raise UserError(f"arm '{arm}': strategies names several; write one, and an arm for each of the others")
    if settings.method == FLIP and settings.reads_texts:
        raise UserError(f"arm '{arm}': map_rows, auxiliary.weight and text_rows need encoded texts; write method: ctrl")
    return settings.strategies[0]


def make_training_set(store: Store, settings: RunSettings, hold_out_items: float = 0.0) -> Path:
    """Validate the data set and retrieve its training set, unless that has been done; its folder.

    Args:
        store: Where it is kept.
        settings: The data set and its checks.
        hold_out_items: Share of the items that the train part shall not hold, so that they are new in the others.

    Raises:
        UserError: the data set is wrong.
        ValidationStoppedError: validation stopped it.
    """
    from components.retrieve.step import retrieve
    from components.validate.step import validate

    spec = load_spec(settings.dataset)
    decides = {"sources": _fingerprints(spec), "checks": settings.checks.model_dump(mode="json"), "formats": FORMATS}
    output = store.place("training_sets", spec=spec.to_yaml(), **decides)
    if not output.is_dir():
        tables = store.root / "validated" / output.name
        validate(settings.dataset, tables, tables.with_name(f"{tables.name}-docs"), settings.checks)
        retrieve(settings.dataset, tables, output)
    return _without_items(store, output, hold_out_items) if hold_out_items > 0 else output


def _without_items(store: Store, whole: Path, share: float) -> Path:
    output = store.place("training_sets", of=whole.name, hold_out_items=share)
    if not output.is_dir():
        data = TrainingSet.open(whole)
        parts = {part: data.table(part) for part in PARTS}
        parts["train"] = parts["train"].filter(pa.array(~held_out(parts["train"], ITEM_KEY, share)))
        write_training_set(output, data.spec, parts, {**data.meta, "hold_out_items": share})
    return output


def _fingerprints(spec: DatasetSpec) -> list[str]:
    """What tells that a source has changed: size and time of its files, or the store's own tag."""
    import fsspec

    sources = [source for source in (spec.sources.impressions, spec.sources.users, spec.sources.items) if source]
    found = []
    for source in sources:
        system, path = fsspec.core.url_to_fs(source.path)
        found += [system.ukey(file) for file in sorted(system.find(path))]
    return found


def make_embeddings(trial: Trial) -> None:
    """Write and encode the texts that a trial reads, unless that has been done."""
    from components.encode.step import encode
    from components.prompt_transform.step import prompt_transform

    if trial.prompts is not None and not trial.prompts.is_dir():
        prompt_transform(trial.training_set, trial.prompts, trial.settings.prompt)
    if trial.prompts is not None and trial.embeddings is not None and not trial.embeddings.is_dir():
        encode(trial.prompts, trial.embeddings, trial.settings.encode)


def tasks_of(trial: Trial, part: str) -> Iterator[Task]:
    """What has to be made before the trial's scores on a part are there, in order."""
    name = f"{trial.backbone}, {trial.arm}, seed {trial.seed}"
    if trial.pretrained is not None:
        yield Task(f"pretrain {name}", trial.pretrained, None, partial(_pretrain, trial))
    if trial.aligned is not None:
        work = _reconstruct if trial.settings.method == FLIP else _align
        yield Task(f"{work.__name__.strip('_')} {name}", trial.aligned, trial.pretrained, partial(work, trial))
    yield Task(f"train {name}", trial.scores(part), trial.start, partial(_train, trial, part))


def _align(trial: Trial) -> None:
    from components.align.step import align

    assert trial.prompts and trial.embeddings and trial.aligned  # noqa: S101  (a task of arms with a stage 1)
    paths = trial.training_set, trial.prompts, [trial.embeddings], trial.aligned
    settings = trial.settings.align.model_copy(update=ALONE)
    align(*paths, trial.backbone, trial.settings.model, settings, trial.seed, trial.pretrained)


def _pretrain(trial: Trial) -> None:
    from components.pretrain.step import pretrain

    assert trial.pretrained  # noqa: S101  (a task of arms that pre-train)
    settings = trial.settings.pretrain.model_copy(update={"threads": 1})
    model = trial.settings.model.of_encoder()
    pretrain(trial.training_set, trial.pretrained, trial.backbone, model, settings, trial.seed)


def _reconstruct(trial: Trial) -> None:
    from components.reconstruct.step import reconstruct

    assert trial.prompts and trial.aligned  # noqa: S101  (a task of arms with a stage 1)
    paths = trial.training_set, trial.prompts, trial.aligned
    settings = trial.settings.reconstruct.model_copy(update=ALONE)
    reconstruct(*paths, trial.backbone, trial.settings.model, settings, trial.seed)


def _train(trial: Trial, part: str) -> None:
    """Train where that has not been done, and score the part once."""
    from components.finetune.step import finetune
    from components.models.registry import reads_history

    settings = trial.settings
    if not trial.trained.is_dir():
        training = settings.finetune.model_copy(update={**ALONE, "threads": 1})
        start = trial.backbone, settings.model, training, trial.seed, trial.start
        texts = trial.prompts, [trial.embeddings] if trial.embeddings else None
        strategy = strategy_of(trial.arm, settings)
        finetune(trial.training_set, trial.trained, trial.arm, *start, *texts, strategy=strategy)
    data = TrainingSet.open(trial.training_set).for_model(reads_history(trial.backbone))
    impressions = data.table(part, [IMPRESSION_ID])[IMPRESSION_ID]
    probabilities = pa.array(_probabilities(trial, data, part))
    with aside(trial.scores(part)) as draft:
        pq.write_table(pa.table({IMPRESSION_ID: impressions, "probability": probabilities}), draft)


def _probabilities(trial: Trial, data: TrainingSet, part: str) -> Floats:
    """A part's probabilities [n]; where the arm has learnt to map rows, new users and items are given theirs."""
    from components.evaluate.scoring import arm_scorer, maps_rows, scores_with_new_rows, text_scores

    arm, checkpoint = trial.arm, trial.trained
    settings = trial.settings.evaluate.model_copy(update={"threads": 1})
    if strategy_of(arm, trial.settings) != ID:
        return text_scores(arm, checkpoint, trial.prompts, data, part)
    if maps_rows(checkpoint):
        assert trial.prompts and trial.embeddings  # noqa: S101  (maps of rows were learnt from them)
        texts = trial.prompts, [trial.embeddings]
        return scores_with_new_rows(arm, checkpoint, *texts, data, part, settings.batch_size).probabilities
    return arm_scorer(arm, checkpoint, data.layout, settings)(data.arrays(part).ids)
