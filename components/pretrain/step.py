"""Pre-train a model's sequence encoder on what users did before the training cut-off (SRP4CTR's FG-BERT)."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from components.training.loop import TrainingError
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

    def losses(self, ids: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of each attribute over events' ids [batch, L, A]; one that hides nothing is absent."""
        rates = self.settings.item_rate, self.settings.behaviour_rate
        masked = mask_events(ids, self.attributes, rates, MASK, generator)
        _, tokens, _ = self.encoder(masked.ids)
        found: dict[str, Tensor] = self.cloze(tokens[:, 1:], ids, masked.hidden, self.encoder.table.weight, generator)
        return found

    def train(self, sequences: Sequences) -> list[dict[str, Any]]:
        """Run every epoch; a line of the curve for each: the mean of the attributes' losses together."""
        batches = math.ceil(len(sequences) / self.settings.batch_size)
        steps = batches * self.settings.epochs
        schedule = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, steps, power=self.settings.power)
        curve: list[dict[str, Any]] = []
        self.encoder.train()
        for epoch in range(1, self.settings.epochs + 1):
            started, total = time.perf_counter(), torch.zeros((), device=self.device)
            for ids in sequences.batches(self.settings.batch_size, self.generator):
                losses = self.losses(ids, self.generator)
                if losses:
                    loss = torch.stack(list(losses.values())).sum()
                    self.optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    self.optimizer.step()
                    total += loss.detach()
                schedule.step()
            mean = float(total) / batches
            if not math.isfinite(mean):
                raise TrainingError("the pre-training loss is no finite number; lower pretrain.learning_rate")
            curve.append({"epoch": epoch, "loss": mean, "seconds": round(time.perf_counter() - started, 3)})
            log.info("epoch %d of %d: loss %.4f, %.1f s", epoch, self.settings.epochs, mean, curve[-1]["seconds"])
        return curve

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

    Histories are those of train rows: every event in them lies before the training cut-off.

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
    curve = work.train(learn)
    health = {"before": before, "after": work.report(held), "sequences": len(learn), "held_out": len(held)}
    network.take_over()
    meta = {"seed": seed, "settings": settings.model_dump(mode="json")}
    save_model(output, network.cpu(), meta, {"health.json": health, "curve.json": {"history": curve}})
    return health


def _sequences(encoder: SequenceEncoder, x: Tensor) -> Sequences:
    """The histories of ids [n, W] that have an event."""
    ids = encoder.events.ids(x)
    return Sequences(ids[(ids[:, :, 0] != 0).any(1)])
