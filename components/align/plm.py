"""A PLM that learns with the collaborative model: its last layer, low-rank adapters, or all of it (CTRL, stage 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from components.align.settings import AlignSettings
from components.dataset.errors import UserError
from components.models.plm import Plm, load_plm, load_tokenizer, locate, pool
from components.training.texts import TextRows

FOLDER = "plm"


class LiveTexts(nn.Module):
    """The PLM's vectors of impressions as it is now, with gradients: what TextRows gives of a frozen one.

    Each different text of a batch is encoded once.

    Args:
        index: Which texts each row reads.
        texts: The texts in the order of their numbers.
        settings: The PLM, and what of it is trained.
    """

    def __init__(self, index: TextRows, texts: Sequence[str], settings: AlignSettings) -> None:
        super().__init__()
        self.index, self.texts, self.settings = index, list(texts), settings
        plm = load_plm(settings.plm)
        self.tokenizer = load_tokenizer(settings.plm, locate(settings.plm), settings.plm.max_length)
        self.model = trainable(plm, settings)
        self.width = plm.dim * len(index.columns)
        self.digest = plm.digest

    @property
    def device(self) -> torch.device:
        """Where the vectors come to lie."""
        return self.index.device

    def numbers(self, part: str, rows: Tensor) -> Tensor:
        """Text numbers [len(rows), columns] of these rows of a part."""
        return self.index.numbers(part, rows)

    def forward(self, part: str, rows: Tensor) -> Tensor:
        """Vectors [len(rows), width] of these rows of a part."""
        different, places = torch.unique(self.numbers(part, rows), return_inverse=True)
        return self.encode([self.texts[number] for number in different.tolist()])[places].flatten(1)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors [len(texts), dim]."""
        encodings = self.tokenizer.encode_batch([self.settings.plm.prefix + text for text in texts])
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding.ids)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(states, mask, self.settings.plm.pooling)

    def learnt(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def save(self, folder: Path) -> None:
        """Write what was trained, and of which PLM it is a part."""
        (folder / FOLDER).mkdir()
        state = {name: value.detach().cpu().contiguous() for name, value in self.learnt().items()}
        save_file(state, str(folder / FOLDER / "trained.safetensors"))
        about: dict[str, Any] = {"plm": self.settings.plm.model_dump(mode="json"), "plm_digest": self.digest}
        about |= {"mode": self.settings.plm_mode, "lora_rank": self.settings.lora_rank}
        (folder / FOLDER / "trained.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def trainable(plm: Plm, settings: AlignSettings) -> nn.Module:
    """The PLM with gradients for what the mode trains and for nothing else.

    Raises:
        UserError: the PLM has no layers in a row, or peft is not installed.
    """
    model: nn.Module = plm.model
    model.requires_grad_(settings.plm_mode == "full")
    if settings.plm_mode == "last_layer":
        _layers(plm)[-1].requires_grad_(True)
    if settings.plm_mode == "lora":
        model = _with_adapters(model, settings.lora_rank)
    return model


def _layers(plm: Plm) -> nn.ModuleList:
    """The PLM's layers: the longest list of modules in it."""
    lists = [module for module in plm.model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise UserError(f"align.plm_mode: '{plm.name}' has no layers in a row; write lora or full")
    return max(lists, key=len)


def _with_adapters(model: Any, rank: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("align.plm_mode: lora needs the package peft; install the extra 'train'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="FEATURE_EXTRACTION")
    adapted: nn.Module = get_peft_model(model, config)
    return adapted
