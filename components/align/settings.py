"""The settings of the align step."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AlignSettings(BaseModel):
    """How the collaborative model is aligned with the PLM's embeddings (CTRL, stage 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=1, ge=1, le=1000, description="Epochs over the train part.")
    batch_size: int = Field(default=1024, ge=2, le=65536, description="Rows of a batch, each other's negatives.")
    learning_rate: float = Field(default=5e-4, gt=0, lt=1, description="AdamW's learning rate after the warm-up.")
    warmup_from: float = Field(default=1e-5, gt=0, lt=1, description="Learning rate at which the warm-up begins.")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps spent on the warm-up.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay.")
    temperature: float = Field(default=0.7, gt=0, le=100, description="Temperature of the contrast.")
    similarity: Literal["max_sim", "cosine"] = Field(
        default="max_sim", description="max_sim: over sub-spaces, as in the paper; cosine: of the whole vectors."
    )
    projection: int = Field(default=128, ge=1, le=4096, description="Width to which both sides are projected.")
    subspaces: int = Field(default=4, ge=1, le=64, description="Number M of sub-spaces.")
    width: int = Field(default=32, ge=1, le=1024, description="Width of a sub-space.")
    normalise: bool = Field(default=True, description="L2-normalise the sub-vectors.")
    mask_duplicates: bool = Field(default=True, description="Equal (user, item) pairs in a batch are no negatives.")
    health_rows: int = Field(default=2048, ge=8, le=8192, description="Validation rows of the health report.")
