"""The training loop of a click model: binary cross-entropy, early stopping, best weights kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.dataset.training_set import SplitArrays
from components.models.base import CollaborativeModel
from components.training.batches import Batches
from components.training.group import Group
from components.training.learner import Learner
from components.training.memory import keep_freed_memory
from components.training.metrics import auc, logloss
from components.training.optimizer import LazyAdam
from components.training.progress import Progress, load_optimizer, optimizer_state
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
    model: CollaborativeModel | Learner,
    train: SplitArrays,
    valid: SplitArrays,
    settings: LoopSettings,
    seed: int,
    keep_as: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train until the validation AUC has not risen for `patience` epochs; the best epoch's weights remain.

    In a group of processes every one calls this with the same arguments, and each holds the same model in the end.

    Args:
        model: The model, and what is learnt beside it, on its device.
        train: Rows to learn from.
        valid: Rows to choose the epoch by.
        settings: How.
        seed: Of the shuffling.
        keep_as: What beside these decides the result: the training is kept on disk under this name and goes on
            from there if it was killed. None: it is not kept.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    keep_freed_memory()
    group = Group.join()
    learner = model if isinstance(model, Learner) else Learner(model)
    training = _Training(learner, Batches(train, group), settings, seed, group)
    parts = {**(keep_as or {}), "settings": settings, "seed": seed}
    progress = None if keep_as is None else Progress("finetune", parts, settings.checkpoint_minutes, group)
    if progress:
        training.go_on(progress)
    while training.epoch <= settings.epochs and training.since < settings.patience:
        started = time.perf_counter()
        loss = training.train_epoch(progress)
        training.judge(loss, *_measured(learner, valid, group), started)
    learner.load_state_dict(training.best)
    learner.model.embedding.requires_grad_(True)
    if progress:
        progress.clear()
    return training.result


class _Training:
    """A training in progress: the model and all that the next step depends on."""

    def __init__(self, learner: Learner, batches: Batches, settings: LoopSettings, seed: int, group: Group) -> None:
        self.learner, self.batches, self.settings, self.group = learner, batches, settings, group
        group.prepare(learner, seed=seed)
        self.optimizer = LazyAdam(learner.weight_groups(settings), lr=settings.learning_rate)
        # Two of them: the batches are the same whether ids are hidden or not.
        self.generator, self.hiding = (torch.Generator().manual_seed(seed) for _ in range(2))
        self.result, self.best, self.since = FitResult(), _weights(learner), 0
        self.epoch, self.done = 1, 0
        # Losses are summed on the device: reading each one would make a GPU wait.
        self.total = torch.zeros((), device=group.device)
        self.order = self.generator.get_state()

    def train_epoch(self, progress: Progress | None) -> float:
        """Train for what is left of the epoch; its mean loss.

        Raises:
            TrainingError: the loss is no finite number.
        """
        self.learner.train()
        self.learner.model.embedding.requires_grad_(self.epoch > self.settings.frozen_epochs)
        self.order = self.generator.get_state()
        size = self.settings.batch_size
        for batch in self.batches.shuffled(size, self.generator, self.done):
            self._step(*batch, min(size, len(self.batches)))
            self.done += 1
            if progress and progress.due():
                self._keep(progress)
        mean = float(self.group.sum(self.total)) / max(self.done, 1)
        if not math.isfinite(mean):
            raise TrainingError("the training loss is no finite number; lower finetune.learning_rate")
        self.done, self.total = 0, torch.zeros_like(self.total)
        return mean

    def _step(self, ids: Tensor, labels: Tensor, rows: Tensor, whole: int) -> None:
        """One step on this process's part of a batch of so many rows."""
        loss, objective = self.learner.losses(ids, labels, rows, self.settings, self.hiding, self.group, whole)
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        self.group.sum_gradients(self.learner.parameters())
        self.optimizer.step()
        self.total += loss.detach()

    def judge(self, loss: float, valid_auc: float, valid_logloss: float, started: float) -> None:
        """Take an epoch's measures down; keep its weights if they are the best, else perhaps lower the rate."""
        seconds, rate = round(time.perf_counter() - started, 3), float(self.optimizer.param_groups[0]["lr"])
        line = Epoch(self.epoch, loss, valid_auc, valid_logloss, rate, seconds)
        self.result.history.append(line)
        log.info("epoch %d: loss %.4f, validation AUC %.4f, %.1f s", self.epoch, loss, valid_auc, seconds)
        if line.valid_auc > self.result.best_auc:
            self.result.best_epoch, self.result.best_auc = self.epoch, line.valid_auc
            self.best, self.since = _weights(self.learner), 0
        else:
            self.since += 1
            if self.settings.plateau_factor < 1 and self.since < self.settings.patience:
                self.learner.load_state_dict(self.best)
                for group in self.optimizer.param_groups:
                    group["lr"] *= self.settings.plateau_factor
        self.epoch += 1

    def _keep(self, progress: Progress) -> None:
        tensors = {f"model.{name}": value for name, value in self.learner.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {"order": self.order, "hiding": self.hiding.get_state(), "total": self.group.gather(self.total)}
        moments, told = optimizer_state(self.optimizer, "optimizer")
        tensors |= moments
        state = {"epoch": self.epoch, "done": self.done, "since": self.since, **self.result.to_json()}
        progress.keep(tensors, {**state, "optimizer": told})

    def go_on(self, progress: Progress) -> None:
        """Take up where an earlier training of the same name was killed."""
        found = progress.find()
        if found is None:
            return
        tensors, state = found
        parts = {
            part: {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
            for part in ("model.", "best.")
        }
        self.learner.load_state_dict(parts["model."])
        self.best = {name: value.to(self.group.device) for name, value in parts["best."].items()}
        load_optimizer(self.optimizer, "optimizer", tensors, state["optimizer"])
        self.generator.set_state(tensors["order"])
        self.hiding.set_state(tensors["hiding"])
        self.total = tensors["total"][self.group.rank].to(self.group.device)
        self.epoch, self.done, self.since = state["epoch"], state["done"], state["since"]
        history = [Epoch(**line) for line in state["history"]]
        best = max((line.valid_auc for line in history), default=-math.inf)
        self.result = FitResult(state["best_epoch"], best, history)
        log.info("going on in epoch %d after %d batches, from a checkpoint", self.epoch, self.done)


def _measured(learner: Learner, valid: SplitArrays, group: Group) -> tuple[float, float]:
    """AUC and log loss on the validation rows, the same in every process; each process scores its part of them.

    Raises:
        TrainingError: the rows are of one class only.
    """
    scores, mine = torch.zeros(len(valid.labels)), group.share(len(valid.labels))
    scores[mine] = torch.from_numpy(learner.predict("valid", valid.ids[mine], first=mine.start))
    probabilities = group.sum(scores.to(group.device)).cpu().numpy()
    area, cross_entropy = auc(valid.labels, probabilities), logloss(valid.labels, probabilities)
    if area is None or cross_entropy is None:
        raise TrainingError("the validation part holds one class only; change split.ratios so that it holds both")
    # One process's figures for all: a difference in the last bit would let them part ways.
    agreed = group.from_first(torch.tensor([area, cross_entropy], dtype=torch.float64, device=group.device))
    return float(agreed[0]), float(agreed[1])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
