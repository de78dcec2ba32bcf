"""The training loop of a click model: binary cross-entropy, early stopping, best weights kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.dataset.training_set import SplitArrays
from components.models.base import CollaborativeModel
from components.training.batches import Batches
from components.training.learner import Learner
from components.training.metrics import auc, logloss
from components.training.optimizer import LazyAdam
from components.training.settings import LoopSettings

log = logging.getLogger("tandem.training")


@dataclass(frozen=True)
class Epoch:
    """One line of the training curve."""

    epoch: int
    train_loss: float
    valid_auc: float
    valid_logloss: float
    learning_rate: float
    seconds: float


@dataclass
class FitResult:
    """The training curve and the epoch whose weights were kept, counted from 1."""

    best_epoch: int = 0
    best_auc: float = -math.inf
    history: list[Epoch] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The curve as JSON."""
        return {"best_epoch": self.best_epoch, "history": [asdict(line) for line in self.history]}


class TrainingError(RuntimeError):
    """The loss is no number any more."""


def predict(model: CollaborativeModel, ids: npt.NDArray[Any], batch_size: int = 8192) -> npt.NDArray[np.float32]:
    """Click probabilities [n] of ids [n, W], in eval mode, on the model's own device."""
    device = next(model.parameters()).device
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(ids), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(ids[start : start + batch_size])).to(device)
            parts.append(torch.sigmoid(model(batch)).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def fit(
    model: CollaborativeModel | Learner, train: SplitArrays, valid: SplitArrays, settings: LoopSettings, seed: int
) -> FitResult:
    """Train until the validation AUC has not risen for `patience` epochs; the best epoch's weights remain.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    learner = model if isinstance(model, Learner) else Learner(model)
    batches = Batches(train, next(learner.parameters()).device)
    # Two of them: the batches are the same whether ids are hidden or not.
    order, hiding = (torch.Generator().manual_seed(seed) for _ in range(2))
    optimizers = _optimizers(learner, settings)
    result, best, since = FitResult(), _weights(learner), 0
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        learner.model.embedding.requires_grad_(epoch > settings.frozen_epochs)
        loss = _epoch(learner, batches.shuffled(settings.batch_size, order), optimizers, settings, hiding)
        line = _validated(learner, valid, epoch, loss, optimizers, started)
        result.history.append(line)
        log.info("epoch %d: loss %.4f, validation AUC %.4f, %.1f s", epoch, loss, line.valid_auc, line.seconds)
        if line.valid_auc > result.best_auc:
            result.best_epoch, result.best_auc, best, since = epoch, line.valid_auc, _weights(learner), 0
            continue
        since += 1
        if since >= settings.patience:
            break
        if settings.plateau_factor < 1:
            learner.load_state_dict(best)
            for group in _groups(optimizers):
                group["lr"] *= settings.plateau_factor
    learner.load_state_dict(best)
    learner.model.embedding.requires_grad_(True)
    return result


def _optimizers(learner: Learner, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """Adam, lazy for tables with sparse gradients; embedding rows may have a rate of their own."""
    rows = {id(parameter) for parameter in learner.model.embedding.parameters()}
    kinds: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for parameter in learner.parameters():
        kinds[id(parameter) in rows].append(parameter)
    rates = {False: settings.learning_rate, True: settings.learning_rate * settings.embedding_rate}
    groups = [{"params": parameters, "lr": rates[are_rows]} for are_rows, parameters in kinds.items()]
    return [LazyAdam(groups, lr=settings.learning_rate)]


def _groups(optimizers: list[torch.optim.Optimizer]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers:
        yield from optimizer.param_groups


def _epoch(
    learner: Learner,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    optimizers: list[torch.optim.Optimizer],
    settings: LoopSettings,
    hiding: torch.Generator,
) -> float:
    learner.train()
    # Losses are summed on the device: reading each one would make a GPU wait.
    total, steps = torch.zeros((), device=next(learner.parameters()).device), 0
    for ids, labels, rows in batches:
        loss, objective = learner.losses(ids, labels, rows, settings, hiding)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        total += loss.detach()
        steps += 1
    mean = float(total) / max(steps, 1)
    if not math.isfinite(mean):
        raise TrainingError("the training loss is no finite number; lower finetune.learning_rate")
    return mean


def _validated(
    learner: Learner,
    valid: SplitArrays,
    epoch: int,
    loss: float,
    optimizers: list[torch.optim.Optimizer],
    started: float,
) -> Epoch:
    scores = learner.predict("valid", valid.ids)
    area, cross_entropy = auc(valid.labels, scores), logloss(valid.labels, scores)
    if area is None or cross_entropy is None:
        raise TrainingError("the validation part holds one class only; change split.ratios so that it holds both")
    rate = float(next(_groups(optimizers))["lr"])
    return Epoch(epoch, loss, area, cross_entropy, rate, round(time.perf_counter() - started, 3))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
