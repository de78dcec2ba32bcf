"""Align a fresh collaborative model with the PLM's view of the same impressions (CTRL, stage 1)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.align.plm import LiveTexts
from components.align.settings import AlignSettings
from components.dataset.embeddings import EmbeddingSet
from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.dataset.training_set import SplitArrays, TrainingSet
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, reads_history
from components.objectives.contrastive import info_nce
from components.objectives.health import HEALTHY, judge, report, retrieval_accuracy
from components.run import read_json
from components.training.checkpoints import continue_from, save_model
from components.training.contrast import Contrast
from components.training.device import pick_device
from components.training.group import Group
from components.training.item_texts import give_texts, with_liked
from components.training.launch import train_elsewhere
from components.training.progress import Progress, inputs_digest
from components.training.seeds import seed_everything
from components.training.stage import LOSS, Stage, drawn_rows
from components.training.texts import TextRows, Texts, read_texts
from components.training.warm import CANDIDATE, begin_with, champion_checkpoint

log = logging.getLogger("tandem.align")
PARTS = ("train", "valid")
#: Rows whose nearest texts the health report shows.
NEIGHBOURS = 6


class Alignment(Stage):
    """One alignment in progress: the model, the heads, and the rows of both modalities on one device.

    Args:
        model: The collaborative model, fresh or already trained.
        texts: The PLM's vectors of impressions.
        arrays: The train part and the valid part.
        rows: Rows of the train part to learn from [n].
        settings: How.
        seed: Of the order.
    """

    log, section = log, "align"

    def __init__(
        self,
        model: CollaborativeModel,
        texts: Texts,
        arrays: Mapping[str, SplitArrays],
        rows: Tensor,
        settings: AlignSettings,
        seed: int,
    ) -> None:
        group = Group.join()
        self.settings = settings
        self.model = model.to(group.device)
        self.contrast = Contrast(texts, arrays, model.width, settings).to(group.device)
        self.ids = {part: torch.from_numpy(rows.ids).to(group.device) for part, rows in arrays.items()}
        group.prepare(self.model, self.contrast, seed=seed)
        weights = [*self.model.parameters(), *self.contrast.heads.parameters()]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": settings.learning_rate}]
        if isinstance(texts, LiveTexts):
            groups.append({"params": list(texts.learnt().values()), "lr": settings.plm_learning_rate})
        modules = {"model": self.model, "contrast": self.contrast}
        super().__init__(modules, groups, rows.to(group.device), (LOSS,), settings, seed, group)

    def rate(self, step: int, steps: int) -> float:
        """Linear from warmup_from, then constant."""
        warmup = max(1, math.ceil(steps * self.settings.warmup_share))
        start = min(1.0, self.settings.warmup_from / self.settings.learning_rate)
        return min(1.0, start + (1.0 - start) * step / warmup)

    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """The contrast of a batch."""
        mine = rows[self.group.share(len(rows))]
        representation = self.model.representation(self.ids["train"][mine])
        return {LOSS: self.contrast("train", mine, representation, self.group, len(rows))}

    def health(self) -> dict[str, Any]:
        """The health report on validation rows, which alignment has not seen."""
        rows = self._health_rows()
        text, table, by_text, by_table = self._compared(rows)
        same = self.contrast.same("valid", rows)
        found = {
            "loss": float(info_nce(by_text, by_table, self.settings.temperature, same)),
            "retrieval_by_text": retrieval_accuracy(by_text, same),
            "retrieval_by_table": retrieval_accuracy(by_table, same),
            "retrieval_by_chance": float(same.float().mean()),
        }
        return {"rows": len(rows), **found, **report(text, table)}

    def neighbours(self, words: Any, count: int) -> list[dict[str, Any]]:
        """For some validation rows their own words, and the words that their tabular side lies nearest to.

        Args:
            words: Column of the texts in the order of their numbers.
            count: Number of rows.
        """
        rows = self._health_rows()
        *_, by_table = self._compared(rows)
        same = self.contrast.same("valid", rows)
        shown = torch.linspace(0, len(rows) - 1, min(count, len(rows)), device=self.device).long()
        nearest = by_table[shown].argmax(1)
        own, theirs = (self.contrast.texts.numbers("valid", rows[of]).cpu().numpy() for of in (shown, nearest))
        right = same[shown, nearest].tolist()
        return [
            {"row": _said(words, mine), "nearest": _said(words, other), "right": hit}
            for mine, other, hit in zip(own, theirs, right, strict=True)
        ]

    def _health_rows(self) -> Tensor:
        count = min(self.settings.health_rows, len(self.ids["valid"]))
        return torch.linspace(0, len(self.ids["valid"]) - 1, count, device=self.device).long()

    def _compared(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Texts and table of validation rows in the common space, and both similarities."""
        self.model.eval()
        self.contrast.eval()
        with torch.inference_mode():
            text, table = self.contrast.project("valid", rows, self.model.representation(self.ids["valid"][rows]))
            return text, table, *self.contrast.heads.similarities(text, table)


def _said(words: Any, numbers: Any) -> str:
    """The texts of a row, one after the other."""
    return " ".join(words[int(number)].as_py() for number in numbers)


def align(
    training_set: Path,
    prompts: Path,
    embeddings: list[Path],
    output: Path,
    backbone: str,
    model: BackboneConfig,
    settings: AlignSettings,
    seed: int,
    pretrained: Path | None = None,
    champion: Path | None = None,
) -> dict[str, Any]:
    """Align a fresh model, or the champion's for a warm start, and write its checkpoint, health.json and curve.json.

    Neither the projections nor anything of the PLM goes into the model. Beside it lie the projections, for a stage 2
    that keeps the alignment on, or what was trained of the PLM. It begins with what was pre-trained, if anything.

    Returns:
        The health report: `before`, `after`, the verdict (a Verdict), its reasons, neighbours in words, and what
        encoding cost.

    Raises:
        UserError: the embeddings do not belong to the prompts, or are no numbers, another model was pre-trained, or the
            champion is no model to begin with.
    """
    given = {"training_set": training_set, "prompts": prompts, "embeddings": embeddings, "output": output}
    given |= {"backbone": backbone, "model": model, "settings": settings, "seed": seed}
    given |= {"pretrained": pretrained, "champion": champion}
    if train_elsewhere(align, threads=1, **given):
        found: dict[str, Any] = read_json(output / "health.json")
        return found
    data = TrainingSet.open(training_set).for_model(reads_history(backbone))
    frozen, encoded = read_texts(prompts, embeddings, pick_device())
    seed_everything(seed)
    network = build_backbone(backbone, data.layout, model)
    arrays = {part: data.arrays(part) for part in PARTS}
    give_texts(network, frozen, arrays["train"])
    if settings.liked_texts:
        frozen = with_liked(frozen, data.layout, arrays)
    texts = _texts(frozen, prompts, encoded, settings)
    warm = None if pretrained is not None else champion_checkpoint(champion, CANDIDATE)
    if pretrained is not None:
        continue_from(network, pretrained)
    began_with = begin_with(network, warm) if warm else None
    rows = drawn_rows(data, settings.rows, seed)
    work = Alignment(network, texts, arrays, rows, settings, seed)
    before = work.health()
    decides: dict[str, Any] = {"backbone": backbone, "model": model, "settings": settings, "seed": seed}
    inputs = inputs_digest(training_set, prompts, embeddings, pretrained or warm)
    progress = Progress("align", {**decides, "inputs": inputs}, settings.checkpoint_minutes, work.group)
    work.go_on(progress)
    curve = work.train(progress)
    after = work.health()
    words = PromptSet.open(prompts).texts(["text"])["text"]
    verdict, reasons = judge(before, after)
    health = {
        "verdict": verdict,
        "reasons": reasons,
        "before": before,
        "after": after,
        "neighbours": work.neighbours(words, NEIGHBOURS),
        "cache": encoded.meta["cache"],
    }
    log.log(
        logging.INFO if verdict == HEALTHY else logging.WARNING,
        "health of %s, seed %d: %s, retrieval %.3f by text and %.3f by table%s",
        backbone,
        seed,
        verdict,
        after["retrieval_by_text"],
        after["retrieval_by_table"],
        "".join(f"; {reason}" for reason in reasons),
    )
    # Projections of a PLM that was trained do not fit the frozen embeddings, on which a stage 2 would keep it up.
    beside = texts.save if isinstance(texts, LiveTexts) else work.contrast.save
    named = {name: encoded.meta.get(name) for name in ("plm", "plm_revision", "plm_digest")}
    meta = {"seed": seed, "settings": settings.model_dump(mode="json"), "champion": began_with, **named}
    if work.group.first:
        files = {"health.json": health, "curve.json": {"history": curve}}
        save_model(output, work.model, meta, files, beside)
    progress.clear()
    return health


def _texts(frozen: TextRows, prompts: Path, encoded: EmbeddingSet, settings: AlignSettings) -> Texts:
    """The embeddings as they are, or the PLM that they come from, to be trained."""
    if settings.plm_mode == "frozen":
        return frozen
    live = LiveTexts(frozen, PromptSet.open(prompts).texts(["text"])["text"].to_pylist(), settings)
    if live.digest != encoded.meta.get("plm_digest"):
        raise UserError("align.plm is not the PLM that the texts were encoded with; name it as under encode.plm")
    return live
