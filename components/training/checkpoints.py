"""Checkpoints of collaborative models: model.safetensors and config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, name_of
from components.run import aside, read_json

FORMAT = 1


def save_model(
    path: Path, model: CollaborativeModel, meta: dict[str, Any], extra: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint folder at once.

    Args:
        path: The folder; takes the place of an older one.
        model: The collaborative model.
        meta: What is to be known of its making; JSON.
        extra: Contents of further JSON files by name.
    """
    config = {
        "format": FORMAT,
        "backbone": name_of(model),
        "config": model.config.model_dump(mode="json"),
        "layout": model.layout.to_json(),
        "meta": meta,
    }
    with aside(path) as draft:
        draft.mkdir()
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(state, str(draft / "model.safetensors"))
        for name, content in {"config.json": config, **(extra or {})}.items():
            (draft / name).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_model(path: Path) -> CollaborativeModel:
    """The model of a checkpoint folder, on the CPU.

    Raises:
        UserError: the folder is no checkpoint, or one of another format.
    """
    described = path / "config.json"
    if not described.is_file():
        raise UserError(f"{path}: no checkpoint (config.json is missing)")
    config = read_json(described)
    if config.get("format") != FORMAT:
        raise UserError(f"{described}: format {config.get('format')} is not {FORMAT}; train the model again")
    layout = InputLayout.from_json(config["layout"])
    model = build_backbone(config["backbone"], layout, BackboneConfig(**config["config"]))
    model.load_state_dict(load_file(str(path / "model.safetensors")))
    return model
