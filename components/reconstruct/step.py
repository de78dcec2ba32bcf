"""Teach both models to tell what is hidden of an impression from the other's view of it (FLIP, pre-training)."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.dataset.layout import PADDING, InputLayout
from components.dataset.prompts import PromptSet
from components.dataset.training_set import SplitArrays, TrainingSet
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, reads_history
from components.models.tuning import save_learnt
from components.objectives.contrastive import equal_pairs
from components.objectives.health import HEALTHY, judge, report, retrieval_accuracy
from components.objectives.masks import TableMask
from components.reconstruct.heads import Heads
from components.reconstruct.settings import ReconstructSettings
from components.reconstruct.words import HiddenWords, hide_words
from components.run import read_json
from components.training.checkpoints import save_model
from components.training.device import pick_device
from components.training.group import Group
from components.training.launch import train_elsewhere
from components.training.progress import Progress, inputs_digest
from components.training.reader import FrozenReader, LiveReader, TextStates, open_reader
from components.training.seeds import seed_everything
from components.training.stage import LOSS, Stage, drawn_rows
from components.training.tokens import TokenRows
from components.training.warm import CANDIDATE, begin_with, champion_checkpoint

log = logging.getLogger("tandem.reconstruct")
PARTS = ("train", "valid")
#: Rows whose nearest texts the health report shows.
NEIGHBOURS = 6
#: The three tasks by the names of their settings' weights: instance contrast, masked words, masked table fields.
ICL, MLM, MTM = TASKS = ("icl", "mlm", "mtm")


class Reconstruction(Stage):
    """One pre-training in progress: both models, the heads between them, and the rows of both modalities.

    Args:
        model: The collaborative model.
        reader: The PLM over the prompts' tokens.
        texts: Which texts each row reads.
        data: The training set.
        rows: Rows of the train part to learn from [n].
        settings: The step's.
        seed: Of order and masks.
    """

    log, section = log, "reconstruct"

    def __init__(
        self,
        model: CollaborativeModel,
        reader: FrozenReader | LiveReader,
        texts: TokenRows,
        data: TrainingSet,
        rows: Tensor,
        settings: ReconstructSettings,
        seed: int,
    ) -> None:
        group = Group.join()
        device = group.device
        self.settings, self.seed, self.reader, self.texts = settings, seed, reader, texts
        self.model = model.to(device)
        arrays = {part: data.arrays(part) for part in PARTS}
        self.ids = {part: torch.from_numpy(of.ids).to(device) for part, of in arrays.items()}
        self.keys = {part: _keys(of).to(device) for part, of in arrays.items()}
        counts = _counts(arrays["train"], data.layout)
        self.heads = Heads(model, reader, texts.tokens.said(), len(texts.columns), counts, settings).to(device)
        self.table_mask = TableMask(data.layout)
        self.tasks = {task: getattr(settings, f"{task}_weight") for task in TASKS}
        self.tasks = {task: weight for task, weight in self.tasks.items() if weight > 0}
        modules = {"model": self.model, "heads": self.heads}
        weights = [*self.model.parameters(), *self.heads.parameters()]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": settings.learning_rate}]
        if isinstance(reader, LiveReader):
            modules["plm"] = reader
            tuned = [weight for weight in reader.parameters() if weight.requires_grad]
            groups.append({"params": tuned, "lr": settings.plm_learning_rate})
        group.prepare(*modules.values(), seed=seed)
        super().__init__(modules, groups, rows.to(device), (LOSS, *self.tasks), settings, seed, group)

    def rate(self, step: int, steps: int) -> float:
        """Half a cosine from 1 to 0."""
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, steps))))

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """The tasks' losses of a batch, and their weighted sum. Masks follow from seed and step alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        found = self.measure("train", rows, self.group, generator)
        found[LOSS] = torch.stack([weight * found[task] for task, weight in self.tasks.items()]).sum()
        return found

    def measure(self, part: str, rows: Tensor, group: Group, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of each task on rows of a part, or in a group this process's part of it.

        Masks are drawn for the whole batch in every process, each of which keeps its own.
        """
        whole, share = len(rows), group.share(len(rows))
        mine, found = rows[share], dict[str, Tensor]()
        words = hide_words(self.texts, part, rows, self.settings, generator)
        fields = self.table_mask(self.ids[part][rows], self.settings.table_ratio, generator)
        noise = self.heads.noise.draw(int(fields.hidden.sum()), generator)
        clean = self.model.representation(self.ids[part][mine])
        read = self._read(part, mine) if {ICL, MTM} & set(self.tasks) else []
        if ICL in self.tasks:
            text, table = self._project(read, clean)
            found[ICL] = self.heads.contrast(text, table, self._same(part, mine, rows), group, whole)
        if MLM in self.tasks:
            found[MLM] = self._masked_words(words.of(share), clean) / words.count
        if MTM in self.tasks:
            before = int(fields.hidden[: share.start].sum())
            own = fields.of(share)
            states, there = (torch.cat(list(of), 1) for of in zip(*(one.by_row() for one in read), strict=True))
            table = self.model.representation(own.ids)
            told = noise[before : before + int(own.hidden.sum())]
            losses = self.heads.masked_fields(table, states, there, own, told)
            found[MTM] = losses.sum() / max(1, int(fields.hidden.sum()))
        return found

    def _masked_words(self, words: HiddenWords, clean: Tensor) -> Tensor:
        states = self.reader.hidden_states(words.numbers, words.hidden)
        table = clean[words.rows.to(self.device)]
        return self.heads.masked_words(states, table, words.truth.to(self.device), self.reader.words)

    def _read(self, part: str, rows: Tensor) -> list[TextStates]:
        """The states of the rows' texts, column by column: users' texts and items' differ in length."""
        return [TextStates.of(self.reader, column) for column in self.texts.numbers(part, rows).unbind(1)]

    def _project(self, read: list[TextStates], clean: Tensor) -> tuple[Tensor, Tensor]:
        """Texts and rows in the common space [n, projection]."""
        text: Tensor = self.heads.by_text(torch.cat([one.vectors() for one in read], 1))
        return text, self.heads.by_table(clean)

    def _same(self, part: str, rows: Tensor, others: Tensor) -> Tensor | None:
        """Which rows are no negatives of each other [n, N]: of one user and item, or with the same texts."""
        if not self.settings.mask_duplicates:
            return None
        keys = self.keys[part]
        texts = [self.texts.numbers(part, of).to(self.device) for of in (rows, others)]
        return equal_pairs(keys[rows], keys[others]) | equal_pairs(*texts)

    @torch.no_grad()
    def health(self, words: Any) -> dict[str, Any]:
        """The tasks' losses, and the health of both sides, on validation rows under masks that are always the same.

        Args:
            words: Column of the texts in the order of their numbers, of which the nearest neighbours are said.
        """
        count = min(self.settings.health_rows, len(self.ids["valid"]))
        rows = torch.linspace(0, len(self.ids["valid"]) - 1, count, device=self.device).long()
        for module in self.modules.values():
            module.eval()
        sums: dict[str, float] = defaultdict(float)
        sides: list[tuple[Tensor, Tensor]] = []
        generator, alone = torch.Generator().manual_seed(0), Group(0, 1, self.device)
        for batch in torch.split(rows, self.size):
            for task, loss in self.measure("valid", batch, alone, generator).items():
                sums[task] += float(loss) * len(batch) / count
            clean = self.model.representation(self.ids["valid"][batch])
            sides.append(self._project(self._read("valid", batch), clean))
        text, table = (torch.cat(side) for side in zip(*sides, strict=True))
        return {"rows": count, **sums, **self._compared(rows, text, table, words)}

    def _compared(self, rows: Tensor, text: Tensor, table: Tensor, words: Any) -> dict[str, Any]:
        """How sound the common space is: of use where the contrast was learnt."""
        if ICL not in self.tasks:
            return {"neighbours": []}
        same = self._same("valid", rows, rows)
        same = torch.eye(len(rows), dtype=torch.bool, device=self.device) if same is None else same
        by_table = table @ text.T
        found = {
            "retrieval_by_text": retrieval_accuracy(by_table.T, same),
            "retrieval_by_table": retrieval_accuracy(by_table, same),
            "retrieval_by_chance": float(same.float().mean()),
        }
        shown = torch.linspace(0, len(rows) - 1, min(NEIGHBOURS, len(rows)), device=self.device).long()
        nearest = by_table[shown].argmax(1)
        own, theirs = (self.texts.numbers("valid", rows[of]).tolist() for of in (shown, nearest))
        neighbours = [
            {"row": _said(words, mine), "nearest": _said(words, other), "right": right}
            for mine, other, right in zip(own, theirs, same[shown, nearest].tolist(), strict=True)
        ]
        return {**found, **report(text, table), "neighbours": neighbours}


def _said(words: Any, numbers: list[int]) -> str:
    """The texts of a row, one after the other."""
    return " ".join(words[number].as_py() for number in numbers)


def _keys(rows: SplitArrays) -> Tensor:
    return torch.from_numpy(np.stack([rows.user_codes, rows.item_codes], 1))


def _counts(train: SplitArrays, layout: InputLayout) -> Tensor:
    """How often each id stands in the fields of the train part [V]; padding is no id.

    A history has many more ids than the fields, and none of them is ever hidden: as noise they would teach nothing.
    """
    told = train.ids[:, : layout.without_history().width]
    counts = torch.from_numpy(np.bincount(told.ravel(), minlength=layout.vocabulary_size))
    counts[PADDING] = 0
    return counts


def reconstruct(
    training_set: Path,
    prompts: Path,
    output: Path,
    backbone: str,
    model: BackboneConfig,
    settings: ReconstructSettings,
    seed: int,
    champion: Path | None = None,
) -> dict[str, Any]:
    """Pre-train both models and write the collaborative one's checkpoint with health.json and curve.json.

    The collaborative model begins anew, or for a warm start with the champion's weights; PLM and heads begin anew each
    time. Nothing of the PLM and none of the heads goes into the model. Beside it lies what was trained of the PLM.

    Returns:
        The health report: `before`, `after`, the verdict (a Verdict), its reasons, neighbours in words.

    Raises:
        UserError: there are no prompts, or the PLM cannot be had, or knows no token for a hidden word, or the champion
            is no model to begin with.
    """
    given = {"training_set": training_set, "prompts": prompts, "output": output, "backbone": backbone}
    given |= {"model": model, "settings": settings, "seed": seed, "champion": champion}
    if train_elsewhere(reconstruct, threads=1, **given):
        found: dict[str, Any] = read_json(output / "health.json")
        return found
    data = TrainingSet.open(training_set).for_model(reads_history(backbone))
    rows = drawn_rows(data, settings.rows, seed)
    texts = TokenRows.read(prompts, settings.plm, {"train": rows, "valid": None})
    seed_everything(seed)
    network = build_backbone(backbone, data.layout, model)
    warm = champion_checkpoint(champion, CANDIDATE)
    began_with = begin_with(network, warm) if warm else None
    reader = open_reader(texts.tokens, settings, pick_device(), settings.cache_megabytes)
    work = Reconstruction(network, reader, texts, data, rows, settings, seed)
    words = PromptSet.open(prompts).texts(["text"])["text"]
    before = work.health(words)
    decides: dict[str, Any] = {"backbone": backbone, "model": model, "settings": settings, "seed": seed}
    inputs = inputs_digest(training_set, prompts, [], warm)
    progress = Progress("reconstruct", {**decides, "inputs": inputs}, settings.checkpoint_minutes, work.group)
    work.go_on(progress)
    curve = work.train(progress)
    after = work.health(words)
    verdict, reasons = judge(before, after) if ICL in work.tasks else (HEALTHY, [])
    told = {"verdict": verdict, "reasons": reasons, "neighbours": after.pop("neighbours")}
    health: dict[str, Any] = {**told, "before": before, "after": after}
    moved = ", ".join(f"{task} {before[task]:.3f} to {after[task]:.3f}" for task in work.tasks)
    level = logging.INFO if verdict == HEALTHY else logging.WARNING
    said = "; ".join([verdict, *reasons])
    log.log(level, "health of %s, seed %d: %s; on validation rows %s", backbone, seed, said, moved)
    named = {"plm": settings.plm.name, "plm_revision": settings.plm.revision, "plm_digest": reader.digest}
    meta = {"seed": seed, "settings": settings.model_dump(mode="json"), **named, "rows": len(rows)}
    meta |= {"champion": began_with}
    if work.group.first:
        files = {"health.json": health, "curve.json": {"history": curve}}
        tuned = reader.model if isinstance(reader, LiveReader) else None
        save_model(output, network, meta, files, lambda folder: save_learnt(folder, tuned, settings, reader.digest))
    progress.clear()
    return health
