"""Pre-train a model's sequence encoder on what users did before the training cut-off (SRP4CTR's FG-BERT)."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from components.dataset.errors import UserError
from components.dataset.layout import MASK
from components.dataset.training_set import TrainingSet
from components.models.base import BackboneConfig
from components.models.registry import build_backbone, reads_history
from components.models.sequence import SequenceEncoder
from components.models.srp4ctr import SRP4CTR
from components.objectives.cloze import Attribute, Cloze, mask_events
from components.pretrain.sequences import Sequences, split_users
from components.pretrain.settings import PretrainSettings
from components.training.checkpoints import save_model
from components.training.device import pick_device
from components.training.group import Group
from components.training.loop import TrainingError
from components.training.memory import keep_freed_memory
from components.training.progress import (
    Progress,
    inputs_digest,
    load_optimizer,
    load_weights,
    optimizer_state,
    weights_of,
)
from components.training.seeds import seed_everything

log = logging.getLogger("tandem.pretrain")


class Pretraining:
    """One pre-training in progress: the encoder, the cloze over it, and the sequences on one device."""

    def __init__(self, encoder: SequenceEncoder, settings: PretrainSettings, seed: int) -> None:
        self.device = pick_device()
        self.settings, self.encoder = settings, encoder.to(self.device)
        self.attributes = tuple(
            Attribute(one.name, one.offset, one.size, place < encoder.events.items)
            for place, one in enumerate(encoder.events.slots)
        )
        self.cloze = Cloze(self.attributes, encoder.table, settings.samples).to(self.device)
        self.generator = torch.Generator().manual_seed(seed)
        weights = [*self.encoder.parameters(), *self.cloze.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=settings.learning_rate)
        self.parts: dict[str, nn.Module] = {"encoder": self.encoder, "cloze": self.cloze}
        # Where it stands: steps done, the state in which the epoch's order was drawn, and its losses up to now.
        self.steps, self.order = 0, self.generator.get_state()
        self.total = torch.zeros((), device=self.device)
        self.curve: list[dict[str, Any]] = []

    def losses(self, ids: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of each attribute over events' ids [batch, L, A]; one that hides nothing is absent."""
        rates = self.settings.item_rate, self.settings.behaviour_rate
        masked = mask_events(ids, self.attributes, rates, MASK, generator)
        _, tokens, _ = self.encoder(masked.ids)
        found: dict[str, Tensor] = self.cloze(tokens[:, 1:], ids, masked.hidden, self.encoder.table.weight, generator)
        return found

    def train(self, sequences: Sequences, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Run what is left of the epochs; a line of the curve for each: the mean of the attributes' losses together."""
        keep_freed_memory()
        batches = math.ceil(len(sequences) / self.settings.batch_size)
        steps = batches * self.settings.epochs
        schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, steps, power=self.settings.power)
        if progress is not None:
            self._go_on(progress, schedule)
        self.encoder.train()
        started = time.perf_counter()
        while self.steps < steps:
            for rows in self._left(sequences, self.steps % batches):
                self._step(sequences.batch(rows))
                schedule.step()
                due = progress is not None and progress.due()
                if self.steps % batches == 0:
                    self._close(batches, round(time.perf_counter() - started, 3))
                    started = time.perf_counter()
                if progress is not None and due:
                    self._keep(progress, schedule)
        return self.curve

    def _left(self, sequences: Sequences, done: int) -> list[Tensor]:
        """The batches that are left of an epoch, in the order that was drawn at its beginning."""
        if done == 0:
            self.order = self.generator.get_state()
            return sequences.shuffled(self.settings.batch_size, self.generator)
        again = torch.Generator()
        again.set_state(self.order)
        return sequences.shuffled(self.settings.batch_size, again)[done:]

    def _step(self, ids: Tensor) -> None:
        losses = self.losses(ids, self.generator)
        if losses:
            loss = torch.stack(list(losses.values())).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.total += loss.detach()
        self.steps += 1

    def _close(self, batches: int, seconds: float) -> None:
        """End an epoch."""
        mean = float(self.total) / batches
        if not math.isfinite(mean):
            raise TrainingError("the pre-training loss is no finite number; lower pretrain.learning_rate")
        self.total = torch.zeros_like(self.total)
        self.curve.append({"epoch": self.steps // batches, "loss": mean, "seconds": seconds})
        log.info("epoch %d of %d: loss %.4f, %.1f s", self.steps // batches, self.settings.epochs, mean, seconds)

    def _keep(self, progress: Progress, schedule: LRScheduler) -> None:
        moments, rates = optimizer_state(self.optimizer, "optimizer")
        drawn = {"order": self.order, "drawn": self.generator.get_state(), "total": self.total}
        state = {"steps": self.steps, "curve": self.curve, "optimizer": rates, "schedule": schedule.last_epoch}
        progress.keep({**weights_of(self.parts), **moments, **drawn}, state)

    def _go_on(self, progress: Progress, schedule: LRScheduler) -> None:
        """Take up where an earlier pre-training of the same name was killed."""
        found = progress.find()
        if found is None:
            return
        tensors, state = found
        load_weights(self.parts, tensors)
        load_optimizer(self.optimizer, "optimizer", tensors, state["optimizer"])
        schedule.last_epoch = state["schedule"]
        self.generator.set_state(tensors["drawn"])
        self.order, self.total = tensors["order"], tensors["total"].to(self.device)
        self.steps, self.curve = state["steps"], state["curve"]
        log.info("going on after %d batches, from a checkpoint", self.steps)

    def report(self, sequences: Sequences) -> dict[str, float]:
        """Mean loss of each attribute over held-out sequences, under masks that are the same each time."""
        generator = torch.Generator().manual_seed(0)
        sums: dict[str, list[float]] = {one.name: [] for one in self.attributes}
        self.encoder.eval()
        with torch.inference_mode():
            for ids in sequences.batches(self.settings.batch_size, generator):
                for name, loss in self.losses(ids, generator).items():
                    sums[name].append(float(loss))
        return {name: sum(values) / len(values) for name, values in sums.items() if values}


def pretrain(
    training_set: Path, output: Path, backbone: str, model: BackboneConfig, settings: PretrainSettings, seed: int
) -> dict[str, Any]:
    """Pre-train and write the model's checkpoint with health.json and curve.json; all but the encoder is untrained.

    Histories are those of train rows: every event in them lies before the training cut-off. Killed and started again,
    it goes on from its last checkpoint.

    Returns:
        The health report: each attribute's loss on users held out, before and after.

    Raises:
        UserError: the backbone has no sequence encoder, or the parts are not divided by time or user.
    """
    data = TrainingSet.open(training_set).for_model(reads_history(backbone))
    if data.spec.split.by == "random":
        raise UserError("a random split has no cut-off before which to pre-train; write 'split: {by: time}' or hash")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed_everything(seed)
    network = build_backbone(backbone, data.layout, model)
    if not isinstance(network, SRP4CTR):
        raise UserError(f"backbone '{backbone}' has no sequence to pre-train; write --backbone srp4ctr")
    arrays = data.arrays("train")
    encoder = network.encoder
    parts = split_users(data, arrays, encoder.events.length, settings.held_out, seed)
    work = Pretraining(encoder, settings, seed)
    learn, held = (_sequences(encoder, torch.from_numpy(arrays.ids[rows]).to(work.device)) for rows in parts)
    if not len(learn):
        raise UserError(
            "no user but those held out has an event before another impression in the train part, so that there is no "
            "sequence to pre-train on; give more data, or write --method collaborative"
        )
    log.info("%d sequences of %d events at most, %d held out", len(learn), encoder.events.length, len(held))
    before = work.report(held)
    decides: dict[str, Any] = {"backbone": backbone, "model": model, "settings": settings, "seed": seed}
    inputs = inputs_digest(training_set, None, [])
    alone = Group(0, 1, work.device)
    progress = Progress("pretrain", {**decides, "inputs": inputs}, settings.checkpoint_minutes, alone)
    curve = work.train(learn, progress)
    health = {"before": before, "after": work.report(held), "sequences": len(learn), "held_out": len(held)}
    network.take_over()
    meta = {"seed": seed, "settings": settings.model_dump(mode="json")}
    save_model(output, network.cpu(), meta, {"health.json": health, "curve.json": {"history": curve}})
    progress.clear()
    return health


def _sequences(encoder: SequenceEncoder, x: Tensor) -> Sequences:
    """The histories of ids [n, W] that have an event."""
    ids = encoder.events.ids(x)
    return Sequences(ids[(ids[:, :, 0] != 0).any(1)])
