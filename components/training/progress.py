"""What a training has reached, kept on disk every few minutes: a killed one goes on from there to the same result."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from components.run import aside, home, read_json
from components.training.group import Group

log = logging.getLogger("tandem.training")

STATE = "state"
RANDOM = "random."
#: Of the embeddings' meta.json, what decides the vectors.
ENCODED = ("plm_digest", "pooling", "max_length", "prefix", "precision")


class Progress:
    """One training's checkpoint: a safetensors file whose header holds what is no tensor.

    It lies under `home()`, named after everything that decides the training's result, so that whoever starts the
    same training again finds it: a restarted process, a task that is tried anew, or the next run.
    """

    def __init__(self, name: str, parts: Mapping[str, Any], minutes: float, group: Group) -> None:
        """Name a training.

        Args:
            name: Of the step.
            parts: All that decides the result, as JSON or pydantic.
            minutes: Between two checkpoints.
            group: The processes that train; the first one writes.
        """
        content = json.dumps(to_jsonable_python({**parts, "processes": group.size}), sort_keys=True)
        self.path = home() / "checkpoints" / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"
        self.group, self.seconds = group, 60 * minutes
        self._restart()

    def _restart(self) -> None:
        self.kept, self.steps, self.ask_at = time.monotonic(), 0, 1

    def due(self) -> bool:
        """Count a step; whether a checkpoint is to be written now, the same answer in every process.

        The first process's clock decides. It is asked when a checkpoint is likely to be due and no sooner, since
        asking lets all processes wait for each other, and a GPU for its host.
        """
        self.steps += 1
        if self.steps < self.ask_at:
            return False
        waited = time.monotonic() - self.kept
        ahead = int(self.steps * min(1.0, max(0.0, self.seconds / max(waited, 1e-9) - 1.0)))
        answer = torch.tensor([waited >= self.seconds, self.steps + max(1, ahead)], device=self.group.device)
        due, self.ask_at = (int(value) for value in self.group.from_first(answer))
        return bool(due)

    def keep(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint of tensors by name and of JSON content; the random state of every process goes with it."""
        random = self.group.gather(torch.get_rng_state().to(self.group.device)).cpu()
        drawn = {f"{RANDOM}cpu": random}
        if self.group.device.type == "cuda":
            drawn[f"{RANDOM}cuda"] = self.group.gather(torch.cuda.get_rng_state().to(self.group.device)).cpu()
        if self.group.first:
            # Cloned: safetensors takes no two names for one memory.
            content = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
            with aside(self.path) as draft:
                save_file({**content, **drawn}, str(draft), {STATE: json.dumps(state, allow_nan=False)})
        self._restart()

    def find(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint's tensors and state, if there is one; the random state is put back."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(str(self.path), "pt") as file:
                state: dict[str, Any] = json.loads(file.metadata()[STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            log.warning("%s cannot be read (%s): training starts from the beginning", self.path, error)
            return None
        # Cloned: torch reads a state from where the tensor's memory begins, whatever row of it this is.
        torch.set_rng_state(tensors.pop(f"{RANDOM}cpu")[self.group.rank].clone())
        if self.group.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.pop(f"{RANDOM}cuda")[self.group.rank].clone())
        return tensors, state

    def clear(self) -> None:
        """Remove the checkpoint of a training that came to its end."""
        if self.group.first:
            self.path.unlink(missing_ok=True)


def weights_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Modules' weights as tensors by the module's name and their own, but for those that are not trained."""
    return {
        f"{part}.{name}": value
        for part, module in modules.items()
        for name, value in module.state_dict().items()
        if name not in _fixed(module)
    }


def load_weights(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `weights_of` told of the same modules."""
    for part, module in modules.items():
        start, own = f"{part}.", module.state_dict()
        kept = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        module.load_state_dict({name: own[name] for name in _fixed(module)} | kept)


def _fixed(module: nn.Module) -> set[str]:
    """What a PLM's mode leaves as it was, and need not be kept."""
    return {name for name, weight in module.named_parameters() if not weight.requires_grad}


def optimizer_state(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name and as JSON: moments and steps; the learning rate of each group."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{prefix}.{number}.{name}"] = value
    return tensors, {"numbers": numbers, "rates": [group["lr"] for group in optimizer.param_groups]}


def load_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_state` told of the same optimizer."""
    content = optimizer.state_dict()
    content["state"] = {}
    for key, value in {**tensors, **state["numbers"]}.items():
        if key.startswith(f"{prefix}."):
            number, name = key.removeprefix(f"{prefix}.").split(".", 1)
            content["state"].setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(content)
    for group, rate in zip(optimizer.param_groups, state["rates"], strict=True):
        group["lr"] = rate


def inputs_digest(
    training_set: Path, prompts: Path | None, embeddings: Sequence[Path], checkpoint: Path | None = None
) -> str:
    """SHA-256 over what a training reads: what the folders say of themselves, and the weights it starts from."""
    files = [training_set / "meta.json", training_set / "vocabulary.json"]
    files += [prompts / "meta.json"] if prompts else []
    files += [checkpoint / "model.safetensors"] if checkpoint else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    for folder in embeddings:
        # What decides the vectors, and not what making them cost, which another run's cache changes.
        meta = read_json(folder / "meta.json")
        digest.update(json.dumps([meta.get(name) for name in ENCODED]).encode())
    return digest.hexdigest()
