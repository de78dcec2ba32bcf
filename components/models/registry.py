"""The backbones by name."""

from __future__ import annotations

from components.dataset.errors import UserError
from components.dataset.layout import InputLayout
from components.models.autoint import AutoInt
from components.models.autoint_history import AutoIntHistory
from components.models.base import BackboneConfig, CollaborativeModel
from components.models.bst import BST
from components.models.dcn import DCN
from components.models.dcnv2 import DCNv2
from components.models.deepfm import DeepFM
from components.models.din import DIN
from components.models.fibinet import FiBiNET
from components.models.history import MeanHistory
from components.models.pnn import PNN
from components.models.srp4ctr import SRP4CTR
from components.models.wide_deep import WideDeep
from components.models.xdeepfm import XDeepFM

BACKBONES: dict[str, type[CollaborativeModel]] = {
    "autoint": AutoInt,
    "autoint_history": AutoIntHistory,
    "bst": BST,
    "dcn": DCN,
    "dcnv2": DCNv2,
    "deepfm": DeepFM,
    "din": DIN,
    "fibinet": FiBiNET,
    "mean_history": MeanHistory,
    "pnn": PNN,
    "srp4ctr": SRP4CTR,
    "wide_deep": WideDeep,
    "xdeepfm": XDeepFM,
}


def build_backbone(name: str, layout: InputLayout, config: BackboneConfig) -> CollaborativeModel:
    """A freshly initialised backbone, by the global random state of torch.

    Raises:
        UserError: no backbone has this name.
    """
    return _backbone(name)(layout, config)


def reads_history(name: str) -> bool:
    """Whether a backbone's input holds the history's columns.

    Raises:
        UserError: no backbone has this name.
    """
    return _backbone(name).reads_history


def _backbone(name: str) -> type[CollaborativeModel]:
    if name not in BACKBONES:
        raise UserError(f"backbone '{name}' is unknown; write one of: {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


def name_of(model: CollaborativeModel) -> str:
    """The name under which a model's class is registered.

    Raises:
        KeyError: it is not registered.
    """
    return {backbone: name for name, backbone in BACKBONES.items()}[type(model)]
