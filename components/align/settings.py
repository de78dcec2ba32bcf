"""The settings of the align step."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.models.plm import PlmSpec
from components.objectives.settings import ContrastSettings
from components.training.settings import ProcessSettings


class AlignSettings(ContrastSettings, ProcessSettings):
    """How the collaborative model is aligned with the PLM's embeddings (CTRL, stage 1)."""

    epochs: int = Field(default=1, ge=1, le=1000, description="Epochs over the train part.")
    batch_size: int = Field(default=1024, ge=2, le=65536, description="Rows of a batch, each other's negatives.")
    learning_rate: float = Field(default=5e-4, gt=0, lt=1, description="AdamW's learning rate after the warm-up.")
    warmup_from: float = Field(default=1e-5, gt=0, lt=1, description="Learning rate at which the warm-up begins.")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps spent on the warm-up.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay.")
    plm_mode: Literal["frozen", "last_layer", "lora", "full"] = Field(
        default="frozen", description="What of the PLM is trained too; frozen reads the embeddings of the encode step."
    )
    plm: PlmSpec = Field(default=PlmSpec(), description="The PLM to be trained: name it as under encode.plm.")
    plm_learning_rate: float = Field(
        default=2e-5, gt=0, lt=1, description="AdamW's learning rate of the PLM's weights."
    )
    lora_rank: int = Field(default=8, ge=1, le=1024, description="lora: rank of the adapters.")
    health_rows: int = Field(default=2048, ge=8, le=8192, description="Validation rows of the health report.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.liked_texts and self.plm_mode != "frozen":
            raise ValueError("liked_texts is the mean of embeddings that are at hand; write plm_mode: frozen")
        return self
