"""Train the collaborative model on clicks, from an aligned checkpoint or from scratch (CTRL, section 3.4)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from components.dataset.embeddings import EmbeddingSet
from components.dataset.errors import UserError
from components.dataset.prompts import PromptSet
from components.dataset.training_set import SplitArrays, TrainingSet
from components.finetune.settings import FinetuneSettings
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, reads_history
from components.models.srp4ctr import SRP4CTR
from components.run import read_json
from components.training.checkpoints import continue_from, save_model
from components.training.contrast import HEADS, Contrast
from components.training.device import pick_device
from components.training.group import Group
from components.training.growth import settle
from components.training.item_texts import give_texts, with_liked
from components.training.launch import train_elsewhere
from components.training.learner import Learner
from components.training.loop import fit
from components.training.newcomers import Hiding, RowMaps
from components.training.progress import inputs_digest
from components.training.seeds import seed_everything
from components.training.strategies import ID, Strategy, TextLearner, text_learner
from components.training.texts import TextRows, read_texts
from components.training.warm import begin_with, champion_checkpoint

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
    prompts: Path | None = None,
    embeddings: list[Path] | None = None,
    champion: Path | None = None,
    strategy: Strategy = ID,
) -> dict[str, Any]:
    """Train one arm and write its checkpoint and curve.json, and the maps of new ids' rows where it has learnt them.

    Without a checkpoint it begins with the champion's weights where the retrieve step has fetched them, else anew.
    Every arm of a run is given the same seed, so that all see the same batches in the same order. Prompts and
    embeddings are read where the settings ask for mapped rows, for text rows or for alignment beside the clicks. An
    arm that is given none is the one that has never met the PLM, and does without all three.

    FLIP's strategies plm and both score with the PLM that lies beside the checkpoint: what they are besides the
    collaborative half lies beside the result, which can be evaluated, and not be served.

    Returns:
        The training curve with the chosen epoch.

    Raises:
        UserError: the checkpoint was made for another training set or backbone, or rows are to be mapped for a
            backbone that reads the history, or the champion is no model to begin with; or the strategy needs a PLM,
            and the checkpoint or the prompts are missing.
    """
    given = {"training_set": training_set, "output": output, "arm": arm, "backbone": backbone, "model": model}
    given |= {"settings": settings, "seed": seed, "checkpoint": checkpoint}
    given |= {"prompts": prompts, "embeddings": embeddings, "champion": champion, "strategy": strategy}
    if train_elsewhere(finetune, settings.threads or 1, **given):
        found: dict[str, Any] = read_json(output / "curve.json")
        return found
    data = TrainingSet.open(training_set).for_model(reads_history(backbone))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    texts = _texts(settings.reads_texts or model.text_rows > 0, prompts, embeddings)
    seed_everything(seed)
    network = build_backbone(backbone, data.layout, model)
    train = data.arrays("train")
    if texts is not None:
        give_texts(network, texts, train)
    warm = champion_checkpoint(champion, arm) if checkpoint is None else None
    if checkpoint is not None:
        continue_from(network, checkpoint)
        if settings.frozen:
            _freeze(network)
    began_with = begin_with(network, warm) if warm else None
    if strategy == ID:
        learner = _learner(network, settings, train, texts, checkpoint).to(pick_device())
    else:
        learner = _text_learner(network, strategy, settings, prompts, checkpoint)
    inputs = inputs_digest(training_set, prompts, embeddings or [], checkpoint or warm)
    decides = {"arm": arm, "backbone": backbone, "model": model, "inputs": inputs, "strategy": strategy}
    result = fit(learner, train, data.arrays("valid"), settings, seed, decides)
    log.info("%s: epoch %d of %d kept", arm, result.best_epoch, len(result.history))
    beside = learner.save if isinstance(learner, TextLearner) else None
    new = settle(network, learner.maps, texts, train) if learner.maps is not None and texts is not None else None
    if new is not None and prompts is not None and embeddings:
        new = replace(new, about=_about(prompts, embeddings))
    curve = {"arm": arm, **result.to_json()}
    meta = {"arm": arm, "seed": seed, "settings": settings.model_dump(mode="json"), "best_epoch": result.best_epoch}
    meta |= {"champion": began_with}
    if Group.join().first:
        save_model(output, network, meta, {"curve.json": curve}, beside=new.save if new else beside)
    return curve


def _texts(read: bool, prompts: Path | None, embeddings: list[Path] | None) -> TextRows | None:
    if prompts is None or not embeddings or not read:
        return None
    return read_texts(prompts, embeddings, pick_device())[0]


def _about(prompts: Path, embeddings: list[Path]) -> dict[str, Any]:
    """How the texts came about: what is needed to say and encode more of them alike."""
    said, encoded = PromptSet.open(prompts).meta, EmbeddingSet.open(embeddings).meta
    found = {"prompt_hash": said["prompt_hash"], "prompt": said.get("settings")}
    return found | {"plm": encoded.get("spec"), "plm_digest": encoded["plm_digest"]}


def _learner(
    network: CollaborativeModel,
    settings: FinetuneSettings,
    train: SplitArrays,
    texts: TextRows | None,
    checkpoint: Path | None,
) -> Learner:
    """The network with what the settings put beside it, made in this order whatever else is set."""
    shares = {"user": settings.hidden_users, "item": settings.hidden_items}
    hiding = Hiding(network.layout, train, shares, settings.hidden_owners) if any(shares.values()) else None
    maps = contrast = None
    if texts is not None and settings.map_rows:
        if network.reads_history:
            raise UserError("finetune.map_rows: events of a history have no texts here; choose a backbone without one")
        maps = RowMaps(network.layout, settings.map_rows, texts.dim, network.config.embedding_dim)
    auxiliary = settings.auxiliary
    if texts is not None and auxiliary.weight > 0:
        told = with_liked(texts, network.layout, {"train": train}) if auxiliary.liked_texts else texts
        contrast = Contrast(told, {"train": train}, network.width, auxiliary)
        if checkpoint is not None:
            _continue_heads(contrast, checkpoint)
    return Learner(
        network,
        hiding=hiding,
        maps=maps,
        texts=texts,
        contrast=contrast,
        weight=auxiliary.weight,
        rows=auxiliary.rows,
    )


def _text_learner(
    network: CollaborativeModel,
    strategy: Strategy,
    settings: FinetuneSettings,
    prompts: Path | None,
    checkpoint: Path | None,
) -> TextLearner:
    """The network beside the PLM that was pre-trained with it."""
    if checkpoint is None or prompts is None:
        raise UserError(f"strategy {strategy} scores with a pre-trained PLM; write --method flip")
    if settings.reads_texts or settings.hidden_users or settings.hidden_items:
        raise UserError(
            f"strategy {strategy} knows no hidden ids, mapped rows or alignment; leave them out of finetune"
        )
    parts, device = ("train", "valid"), pick_device()
    return text_learner(network, strategy, checkpoint, prompts, parts, device, settings.cache_megabytes)


def _continue_heads(contrast: Contrast, checkpoint: Path) -> None:
    """Take stage 1's projections over: fresh ones would pull the aligned representation apart at first."""
    if not (checkpoint / HEADS).is_file():
        raise UserError("finetune.auxiliary: stage 1 has trained its PLM, whose embeddings are others now; weight it 0")
    weights = load_file(str(checkpoint / HEADS))
    fresh = contrast.heads.state_dict()
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in fresh.items()}:
        raise UserError(
            "finetune.auxiliary has other projections than align; "
            "give similarity, projection, subspaces, width and liked_texts alike"
        )
    contrast.heads.load_state_dict(weights)


def _freeze(network: CollaborativeModel) -> None:
    """Leave the pre-trained part as it is; a model from scratch has none, and learns all of it."""
    if not isinstance(network, SRP4CTR):
        raise UserError("finetune.frozen: the backbone has no pre-trained part; write --method srp4ctr or remove it")
    network.encoder.requires_grad_(False)
