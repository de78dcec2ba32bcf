"""Checkpoints of collaborative models: model.safetensors and config.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file

from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.registry import build_backbone, name_of
from components.models.srp4ctr import SRP4CTR
from components.run import aside, read_json

FORMAT = 3
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(
    path: Path,
    model: CollaborativeModel,
    meta: dict[str, Any],
    extra: dict[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint folder at once.

    Args:
        path: The folder; takes the place of an older one.
        model: The collaborative model.
        meta: What is to be known of its making; JSON.
        extra: Contents of further JSON files by name.
        beside: Writes what else belongs into the folder.
    """
    described = {
        "backbone": name_of(model),
        "config": model.config.model_dump(mode="json"),
        "layout": model.layout.to_json(),
        "meta": meta,
    }
    with aside(path) as draft:
        draft.mkdir()
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(state, str(draft / WEIGHTS))
        digests = {"sha256": {WEIGHTS: _digest((draft / WEIGHTS).read_bytes()), "config": _config_digest(described)}}
        config = {"format": FORMAT, **described, **digests}
        for name, content in {CONFIG: config, **(extra or {})}.items():
            (draft / name).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if beside is not None:
            beside(draft)


def load_model(path: Path) -> CollaborativeModel:
    """The model of a checkpoint folder, on the CPU.

    Raises:
        UserError: the folder is no checkpoint, one of another format, or one that was changed after it was written.
    """
    config = _read_config(path / CONFIG)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{path}: no checkpoint ({WEIGHTS} is missing)")
    content = weights.read_bytes()
    if _digest(content) != config["sha256"][WEIGHTS]:
        raise _damaged(weights)
    layout = InputLayout.from_json(config["layout"])
    model = build_backbone(config["backbone"], layout, BackboneConfig(**config["config"]))
    model.load_state_dict(load(content))
    return model


def continue_from(model: CollaborativeModel, path: Path) -> None:
    """Take over what stage 1 has learnt, all but the output layer, which starts anew unless it is the champion's.

    An encoder that was pre-trained by itself serves every model that reads it, whatever else that model has.

    Raises:
        UserError: the folder is no checkpoint, or stage 1 was made for another training set or backbone.
    """
    found = load_model(path)
    alike = found.layout == model.layout and type(found) is type(model)
    if alike and found.config == model.config:
        warm = _read_config(path / CONFIG)["meta"].get("champion")
        weights = {name: value for name, value in found.state_dict().items() if warm or not name.startswith("head.")}
        model.load_state_dict(weights, strict=False)
    elif alike and isinstance(model, SRP4CTR) and found.config == model.config.of_encoder():
        assert isinstance(found, SRP4CTR)  # noqa: S101  (alike)
        model.encoder.load_state_dict(found.encoder.state_dict())
        model.take_over()
    else:
        raise UserError(f"{path} was made for another training set or backbone; run stage 1 again")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent}: no checkpoint ({path.name} is missing)")
    try:
        config = read_json(path)
    except ValueError:
        raise _damaged(path) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        given = config.get("format") if isinstance(config, dict) else None
        raise UserError(f"{path}: format {given} is not {FORMAT}; train the model again")
    described = {name: value for name, value in config.items() if name not in {"format", "sha256"}}
    digests = config.get("sha256")
    if not isinstance(digests, dict) or WEIGHTS not in digests or _config_digest(described) != digests.get("config"):
        raise _damaged(path)
    return config


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: was changed or damaged after it was written (sha256 differs); train the model again")


def _config_digest(described: dict[str, Any]) -> str:
    return _digest(json.dumps(described, sort_keys=True, allow_nan=False).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
