"""Train the collaborative model on clicks, from an aligned checkpoint or from scratch (CTRL, section 3.4)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from components.dataset.errors import UserError
from components.dataset.training_set import TrainingSet
from components.finetune.settings import FinetuneSettings
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, reads_history
from components.training.checkpoints import load_model, save_model
from components.training.device import pick_device
from components.training.loop import fit
from components.training.seeds import seed_everything

log = logging.getLogger("tandem.finetune")


def finetune(
    training_set: Path,
    output: Path,
    arm: str,
    backbone: str,
    model: BackboneConfig,
    settings: FinetuneSettings,
    seed: int,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Train one arm and write its checkpoint and curve.json.

    Every arm of a run is given the same seed, so that all see the same batches in the same order.

    Returns:
        The training curve with the chosen epoch.

    Raises:
        UserError: the checkpoint was made for another training set or backbone.
    """
    data = TrainingSet.open(training_set).for_model(reads_history(backbone))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    seed_everything(seed)
    network = build_backbone(backbone, data.layout, model)
    if checkpoint is not None:
        _continue_from(network, checkpoint)
    network = network.to(pick_device())
    result = fit(network, data.arrays("train"), data.arrays("valid"), settings, seed)
    log.info("%s: epoch %d of %d kept", arm, result.best_epoch, len(result.history))
    curve = {"arm": arm, **result.to_json()}
    meta = {"arm": arm, "seed": seed, "settings": settings.model_dump(mode="json"), "best_epoch": result.best_epoch}
    save_model(output, network, meta, {"curve.json": curve})
    return curve


def _continue_from(network: CollaborativeModel, checkpoint: Path) -> None:
    """Take the aligned weights over, all but the output layer, which starts anew."""
    aligned = load_model(checkpoint)
    if aligned.layout != network.layout or aligned.config != network.config or type(aligned) is not type(network):
        raise UserError(f"{checkpoint} was aligned for another training set or backbone; run align again")
    weights = {name: value for name, value in aligned.state_dict().items() if not name.startswith("head.")}
    network.load_state_dict(weights, strict=False)
