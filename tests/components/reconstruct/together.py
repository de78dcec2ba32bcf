"""One step of FLIP in each process of a group, for test_step.py; torchrun imports it in each of them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from components.dataset.training_set import TrainingSet
from components.models.plm import PlmSpec
from components.models.registry import build_backbone
from components.reconstruct.step import Reconstruction
from components.training.group import Group
from components.training.reader import open_reader
from components.training.stage import LOSS
from components.training.tokens import TokenRows
from tests.components.reconstruct.making import MODEL, settings_of

#: Odd, so that the processes' parts differ in length.
ROWS = 33


def one_step(training_set: Path, prompts: Path, plm: str) -> dict[str, torch.Tensor]:
    """The losses of a batch and all gradients, brought together; without dropout, whose masks each process draws."""
    settings = settings_of(PlmSpec(name=plm), plm_mode="last_layer", batch_size=ROWS, dropout=0.0, text_ratio=0.4)
    data = TrainingSet.open(training_set).for_model(False)
    texts = TokenRows.read(prompts, settings.plm, {"train": None, "valid": None})
    torch.manual_seed(1)
    network = build_backbone("dcn", data.layout, MODEL)
    group = Group.join()
    reader = open_reader(texts.tokens, settings, group.device, 0)
    rows = torch.arange(len(data.arrays("train").labels))
    work = Reconstruction(network, reader, texts, data, rows, settings, seed=1)
    # The wheels of chance that are left: the PLM's own dropout.
    reader.eval()
    losses = work.losses(torch.arange(0, 3 * ROWS, 3))
    losses[LOSS].backward()
    group.sum_gradients(work.weights)
    found = {f"loss.{name}": group.sum(loss.detach().clone()) for name, loss in losses.items()}
    for part, module in work.modules.items():
        for name, weight in module.named_parameters():
            if weight.grad is not None:
                found[f"{part}.{name}"] = weight.grad.to_dense()
    return found


def write_step(training_set: Path, prompts: Path, plm: str, output: Path) -> None:
    """Write what each process finds under its own name."""
    found = one_step(training_set, prompts, plm)
    save_file({name: value.contiguous().clone() for name, value in found.items()}, f"{output}.{Group.join().rank}")
