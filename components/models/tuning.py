"""A PLM that is trained in part: its last layer, low-rank adapters, or all of it; and what was trained, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.dataset.errors import UserError
from components.models.plm import Plm, PlmSpec
from components.run import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

PlmMode = Literal["frozen", "last_layer", "lora", "full"]
#: Folder beside a checkpoint, and its files: the weights that were trained, and of which PLM they are.
FOLDER = "plm"
WEIGHTS, ABOUT = "trained.safetensors", "trained.json"


class TuningSettings(BaseModel):
    """What of a PLM is trained together with the collaborative model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plm_mode: PlmMode = Field(
        default="frozen", description="What of the PLM is trained too; frozen reads the embeddings of the encode step."
    )
    plm: PlmSpec = Field(default=PlmSpec(), description="The PLM to be trained: name it as under encode.plm.")
    plm_learning_rate: float = Field(
        default=2e-5, gt=0, lt=1, description="AdamW's learning rate of the PLM's weights."
    )
    lora_rank: int = Field(default=8, ge=1, le=1024, description="lora: rank of the adapters.")


def trainable(plm: Plm, settings: TuningSettings) -> nn.Module:
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
    from torch import nn

    lists = [module for module in plm.model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise UserError(f"plm_mode: '{plm.name}' has no layers in a row; write lora or full")
    return max(lists, key=len)


def _with_adapters(model: Any, rank: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("plm_mode: lora needs the package peft; install the extra 'train'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="FEATURE_EXTRACTION")
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def learnt(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are trained, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def save_learnt(folder: Path, model: nn.Module | None, settings: TuningSettings, digest: str) -> None:
    """Write beside a checkpoint what was trained of a PLM, none of it if frozen, and which PLM that is."""
    from safetensors.torch import save_file

    (folder / FOLDER).mkdir()
    state = {} if model is None else learnt(model)
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / FOLDER / WEIGHTS)
    about: dict[str, Any] = {"plm": settings.plm.model_dump(mode="json"), "plm_digest": digest}
    about |= {"mode": settings.plm_mode, "lora_rank": settings.lora_rank}
    (folder / FOLDER / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def learnt_settings(folder: Path) -> TuningSettings:
    """Which PLM's weights lie beside a checkpoint, and what of it they are.

    Raises:
        UserError: there are none.
    """
    path = folder / FOLDER / ABOUT
    if not path.is_file():
        raise UserError(f"{folder}: holds no PLM; give a checkpoint of --method flip")
    about = read_json(path)
    return TuningSettings(plm=PlmSpec(**about["plm"]), plm_mode=about["mode"], lora_rank=about["lora_rank"])


def load_learnt(folder: Path, model: nn.Module) -> None:
    """Put the weights that lie beside a checkpoint into a PLM of the same mode."""
    from safetensors.torch import load_file

    state = load_file(folder / FOLDER / WEIGHTS)
    own = learnt(model)
    if state.keys() != own.keys():
        raise UserError(f"{folder / FOLDER}: was trained from another PLM; run the step before again")
    model.load_state_dict(state, strict=False)
