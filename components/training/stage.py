"""A training before clicks in progress: modules that learn together from the rows of the train part."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from components.dataset.training_set import TrainingSet
from components.training.group import Group
from components.training.loop import TrainingError
from components.training.memory import keep_freed_memory
from components.training.optimizer import LazyAdam
from components.training.progress import Progress, load_optimizer, load_weights, optimizer_state, weights_of
from components.training.settings import StageSettings

#: The term that is minimised; the others are its parts.
LOSS = "loss"


def drawn_rows(data: TrainingSet, count: int, seed: int) -> Tensor:
    """Rows of the train part to learn from [n], ascending: so many, drawn at random, or all of them for 0."""
    rows = int(data.meta["rows"]["train"])
    if not 0 < count < rows:
        return torch.arange(rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


class Stage(ABC):
    """What stage 1 of every method has in common: order of the rows, steps, curve, and a checkpoint on the way.

    A method says in `losses` what is minimised and in `rate` how the learning rate runs.

    Args:
        modules: What is trained, by the names under which it is kept; on the group's device, and prepared by it.
        groups: The optimizer's groups of weights.
        rows: The rows of the train part to learn from [n].
        terms: Names of the losses, LOSS first.
        settings: Epochs, batches, rates.
        seed: Of the order.
        group: The processes that train.
    """

    log: logging.Logger
    section: str

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        groups: list[dict[str, Any]],
        rows: Tensor,
        terms: tuple[str, ...],
        settings: StageSettings,
        seed: int,
        group: Group,
    ) -> None:
        self.modules, self.rows, self.terms, self.group = dict(modules), rows, terms, group
        self.device, self.epochs = group.device, settings.epochs
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = [weight for one in groups for weight in one["params"]]
        self.optimizer = LazyAdam(groups, settings.learning_rate, settings.weight_decay)
        self.size = min(settings.batch_size, len(rows))
        self.batches = len(rows) // self.size
        steps = self.batches * settings.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: self.rate(step, steps))
        # Where it stands: steps done, the order of the epoch in progress, and the losses since the curve's last line.
        self.steps, self.order = 0, self.generator.get_state()
        self.total, self.since = torch.zeros(len(terms), device=self.device), 0
        self.curve: list[dict[str, Any]] = []

    @abstractmethod
    def losses(self, rows: Tensor) -> dict[str, Tensor]:
        """Each term of a batch of rows of the train part, or in a group this process's part of it."""

    @abstractmethod
    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate at a step of so many."""

    def train(self, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Run what is left of the epochs; a line of the curve for each tenth of one: the mean losses since the last."""
        keep_freed_memory()
        started = time.perf_counter()
        while self.steps < self.batches * self.epochs:
            for epoch, losses in self._epoch(progress):
                if not math.isfinite(losses[LOSS]):
                    raise TrainingError(f"the {self.section} loss is no finite number; lower its learning_rate")
                seconds, started = round(time.perf_counter() - started, 3), time.perf_counter()
                self.curve.append({"epoch": round(epoch, 3), **losses, "seconds": seconds})
                said = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
                self.log.info("epoch %.2f of %d: %s, %.1f s", epoch, self.epochs, said, seconds)
        return self.curve

    def _epoch(self, progress: Progress | None) -> Iterator[tuple[float, dict[str, float]]]:
        """Epochs done and the mean losses since the last time, about ten times an epoch, for what is left of one."""
        for module in self.modules.values():
            module.train()
        self.order = self.generator.get_state()
        order = self.rows[torch.randperm(len(self.rows), generator=self.generator).to(self.device)]
        tenth = max(1, self.batches // 10)
        for number in range(self.steps % self.batches + 1, self.batches + 1):
            self._step(order[(number - 1) * self.size : number * self.size])
            if number == self.batches or (number % tenth == 0 and self.batches - number >= tenth):
                mean = self.group.sum(self.total) / self.since
                yield self.steps / self.batches, dict(zip(self.terms, mean.tolist(), strict=True))
                self.total, self.since = torch.zeros_like(self.total), 0
            if progress and progress.due():
                self._keep(progress, ended=number == self.batches)

    def _step(self, rows: Tensor) -> None:
        losses = self.losses(rows)
        self.optimizer.zero_grad(set_to_none=True)
        losses[LOSS].backward()  # type: ignore[no-untyped-call]
        self.group.sum_gradients(self.weights)
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        # Losses are summed on the device: reading each one would make a GPU wait.
        self.total += torch.stack([losses[name].detach() for name in self.terms])
        self.since += 1

    def _keep(self, progress: Progress, ended: bool) -> None:
        moments, rates = optimizer_state(self.optimizer, "optimizer")
        order = self.generator.get_state() if ended else self.order
        drawn = {"order": order, "total": self.group.gather(self.total)}
        state = {"steps": self.steps, "since": self.since, "curve": self.curve, "optimizer": rates}
        progress.keep({**weights_of(self.modules), **moments, **drawn}, {**state, "schedule": self.schedule.last_epoch})

    def go_on(self, progress: Progress) -> None:
        """Take up where an earlier training of the same name was killed."""
        found = progress.find()
        if found is None:
            return
        tensors, state = found
        load_weights(self.modules, tensors)
        load_optimizer(self.optimizer, "optimizer", tensors, state["optimizer"])
        self.schedule.last_epoch = state["schedule"]
        self.generator.set_state(tensors["order"])
        self.total = tensors["total"][self.group.rank].to(self.device)
        self.steps, self.since, self.curve = state["steps"], state["since"], state["curve"]
        self.log.info("going on after %d batches, from a checkpoint", self.steps)
