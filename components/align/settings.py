"""The settings of the align step."""

from __future__ import annotations

from pydantic import Field

from components.objectives.settings import ContrastSettings


class AlignSettings(ContrastSettings):
    """How the collaborative model is aligned with the PLM's embeddings (CTRL, stage 1)."""

    epochs: int = Field(default=1, ge=1, le=1000, description="Epochs over the train part.")
    batch_size: int = Field(default=1024, ge=2, le=65536, description="Rows of a batch, each other's negatives.")
    learning_rate: float = Field(default=5e-4, gt=0, lt=1, description="AdamW's learning rate after the warm-up.")
    warmup_from: float = Field(default=1e-5, gt=0, lt=1, description="Learning rate at which the warm-up begins.")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps spent on the warm-up.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay.")
    health_rows: int = Field(default=2048, ge=8, le=8192, description="Validation rows of the health report.")
