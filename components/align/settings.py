"""The settings of the align step."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.models.tuning import TuningSettings
from components.objectives.settings import ContrastSettings
from components.training.settings import StageSettings


class AlignSettings(ContrastSettings, StageSettings, TuningSettings):
    """How the collaborative model is aligned with the PLM's embeddings (CTRL, stage 1)."""

    warmup_from: float = Field(default=1e-5, gt=0, lt=1, description="Learning rate at which the warm-up begins.")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="Share of the steps spent on the warm-up.")
    health_rows: int = Field(default=2048, ge=8, le=8192, description="Validation rows of the health report.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.liked_texts and self.plm_mode != "frozen":
            raise ValueError("liked_texts is the mean of embeddings that are at hand; write plm_mode: frozen")
        return self
