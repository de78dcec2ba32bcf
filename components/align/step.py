"""Align a fresh collaborative model with the PLM's view of the same impressions (CTRL, stage 1)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.align.plm import LiveTexts
from components.align.settings import AlignSettings
from components.dataset.embeddings import EmbeddingSet
from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.dataset.training_set import TrainingSet
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, reads_history
from components.objectives.contrastive import info_nce
from components.objectives.health import report, retrieval_accuracy
from components.training.checkpoints import save_model
from components.training.contrast import Contrast
from components.training.device import pick_device
from components.training.loop import TrainingError
from components.training.optimizer import LazyAdam
from components.training.seeds import seed_everything
from components.training.texts import TextRows, Texts, read_texts

log = logging.getLogger("tandem.align")
PARTS = ("train", "valid")


class Alignment:
    """One alignment in progress: the model, the heads, and the rows of both modalities on one device."""

    def __init__(
        self, model: CollaborativeModel, texts: Texts, data: TrainingSet, settings: AlignSettings, seed: int
    ) -> None:
        self.device = pick_device()
        self.settings = settings
        self.model = model.to(self.device)
        arrays = {part: data.arrays(part) for part in PARTS}
        self.contrast = Contrast(texts, arrays, model.width, settings).to(self.device)
        self.ids = {part: torch.from_numpy(rows.ids).to(self.device) for part, rows in arrays.items()}
        self.generator = torch.Generator().manual_seed(seed)
        weights = [*self.model.parameters(), *self.contrast.heads.parameters()]
        groups: list[dict[str, Any]] = [{"params": weights, "lr": settings.learning_rate}]
        if isinstance(texts, LiveTexts):
            groups.append({"params": list(texts.learnt().values()), "lr": settings.plm_learning_rate})
        self.optimizer = LazyAdam(groups, settings.learning_rate, settings.weight_decay)
        size = min(settings.batch_size, len(self.ids["train"]))
        self.batches = len(self.ids["train"]) // size
        self.size = size

    def train(self) -> list[dict[str, Any]]:
        """Run every epoch; a line of the curve for each tenth of one: the mean loss since the last line."""
        steps = self.batches * self.settings.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: self._rate(step, steps))
        curve: list[dict[str, Any]] = []
        started = time.perf_counter()
        for epoch in range(self.settings.epochs):
            for done, loss in self._epoch(schedule):
                if not math.isfinite(loss):
                    raise TrainingError("the alignment loss is no finite number; lower align.learning_rate")
                seconds, started = round(time.perf_counter() - started, 3), time.perf_counter()
                curve.append({"epoch": round(epoch + done, 3), "loss": loss, "seconds": seconds})
                log.info("epoch %.2f of %d: loss %.4f, %.1f s", epoch + done, self.settings.epochs, loss, seconds)
        return curve

    def _rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate: linear from warmup_from, then constant."""
        warmup = max(1, math.ceil(steps * self.settings.warmup_share))
        start = min(1.0, self.settings.warmup_from / self.settings.learning_rate)
        return min(1.0, start + (1.0 - start) * step / warmup)

    def _epoch(self, schedule: torch.optim.lr_scheduler.LRScheduler) -> Iterator[tuple[float, float]]:
        """The share of the epoch that is done and the mean loss since the last share, about ten times."""
        self.model.train()
        self.contrast.train()
        order = torch.randperm(len(self.ids["train"]), generator=self.generator).to(self.device)
        # Losses are summed on the device: reading each one would make a GPU wait.
        total, first = torch.zeros((), device=self.device), 0
        tenth = max(1, self.batches // 10)
        for number in range(1, self.batches + 1):
            loss = self._loss("train", order[(number - 1) * self.size : number * self.size])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            schedule.step()
            total += loss.detach()
            if number == self.batches or (number % tenth == 0 and self.batches - number >= tenth):
                yield number / self.batches, float(total) / (number - first)
                total, first = torch.zeros_like(total), number

    def _loss(self, part: str, rows: Tensor) -> Tensor:
        loss: Tensor = self.contrast(part, rows, self.model.representation(self.ids[part][rows]))
        return loss

    def health(self) -> dict[str, Any]:
        """The health report on validation rows, which alignment has not seen."""
        self.model.eval()
        self.contrast.eval()
        count = min(self.settings.health_rows, len(self.ids["valid"]))
        rows = torch.linspace(0, len(self.ids["valid"]) - 1, count, device=self.device).long()
        with torch.inference_mode():
            text, table = self.contrast.project("valid", rows, self.model.representation(self.ids["valid"][rows]))
            by_text, by_table = self.contrast.heads.similarities(text, table)
            same = self.contrast.same("valid", rows)
            found = {
                "loss": float(info_nce(by_text, by_table, self.settings.temperature, same)),
                "retrieval_by_text": retrieval_accuracy(by_text, same),
                "retrieval_by_table": retrieval_accuracy(by_table, same),
            }
            return {"rows": count, **found, **report(text, table)}


def align(
    training_set: Path,
    prompts: Path,
    embeddings: list[Path],
    output: Path,
    backbone: str,
    model: BackboneConfig,
    settings: AlignSettings,
    seed: int,
) -> dict[str, Any]:
    """Align and write the collaborative model's checkpoint with health.json and curve.json.

    Neither the projections nor anything of the PLM goes into the model. Beside it lie the projections, for a stage 2
    that keeps the alignment on, or what was trained of the PLM.

    Returns:
        The health report: `before`, `after`, the verdict healthy or collapsed, its reasons, and what encoding cost.

    Raises:
        UserError: the embeddings do not belong to the prompts, or are no numbers.
    """
    data = TrainingSet.open(training_set).for_model(reads_history(backbone))
    frozen, encoded = read_texts(prompts, embeddings, pick_device())
    seed_everything(seed)
    texts = _texts(frozen, prompts, encoded, settings)
    work = Alignment(build_backbone(backbone, data.layout, model), texts, data, settings, seed)
    before = work.health()
    curve = work.train()
    after = work.health()
    health = {
        "verdict": after["verdict"],
        "reasons": after["reasons"],
        "before": before,
        "after": after,
        "cache": encoded.meta["cache"],
    }
    log.info(
        "health: %s, retrieval %.3f by text and %.3f by table",
        after["verdict"],
        after["retrieval_by_text"],
        after["retrieval_by_table"],
    )
    # Projections of a PLM that was trained do not fit the frozen embeddings, on which a stage 2 would keep it up.
    beside = texts.save if isinstance(texts, LiveTexts) else work.contrast.save
    named = {name: encoded.meta.get(name) for name in ("plm", "plm_revision", "plm_digest")}
    meta = {"seed": seed, "settings": settings.model_dump(mode="json"), **named}
    save_model(output, work.model, meta, {"health.json": health, "curve.json": {"history": curve}}, beside)
    return health


def _texts(frozen: TextRows, prompts: Path, encoded: EmbeddingSet, settings: AlignSettings) -> Texts:
    """The embeddings as they are, or the PLM that they come from, to be trained."""
    if settings.plm_mode == "frozen":
        return frozen
    live = LiveTexts(frozen, PromptSet.open(prompts).texts(["text"])["text"].to_pylist(), settings)
    if live.digest != encoded.meta.get("plm_digest"):
        raise UserError("align.plm is not the PLM that the texts were encoded with; name it as under encode.plm")
    return live
