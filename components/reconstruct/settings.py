"""The settings of the reconstruct step."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from components.models.plm import PlmSpec
from components.models.tuning import PlmMode, TuningSettings
from components.training.settings import StageSettings


class ReconstructSettings(StageSettings, TuningSettings):
    """How table and text of an impression are reconstructed from each other (FLIP, pre-training)."""

    icl_weight: float = Field(default=1.0, ge=0, le=1000, description="Instance contrast's weight; 0: left out.")
    mlm_weight: float = Field(default=1.0, ge=0, le=1000, description="Masked words' weight; 0: left out.")
    mtm_weight: float = Field(default=1.0, ge=0, le=1000, description="Masked table fields' weight; 0: left out.")
    text_masks: Literal["field", "token"] = Field(
        default="field", description="field: every token of a value is hidden; token: single tokens of values."
    )
    text_ratio: float = Field(default=0.15, gt=0, le=1, description="Share of a text's fields hidden, one at least.")
    table_ratio: float = Field(default=0.15, gt=0, le=1, description="Share of a row's fields hidden, one at least.")
    cross_modal: bool = Field(default=True, description="false: each side is told from itself alone (ablation).")
    vocabulary: Literal["said", "whole"] = Field(
        default="said", description="Words that a hidden one may be: those that the prompts' values hold, or all."
    )
    noise: int = Field(default=25, ge=1, le=4096, description="Noise ids beside each true id of a hidden field.")
    field_width: int = Field(default=32, ge=1, le=1024, description="Width of a hidden field's state.")
    mask_padding: bool = Field(
        default=True, description="false: padding is attended to, as in the released code; here as states of zeros."
    )
    scale_scores: bool = Field(default=True, description="false: attention is unscaled, as in the released code.")
    temperature: float = Field(default=0.7, gt=0, le=100, description="Temperature of the contrast.")
    projection: int = Field(default=128, ge=1, le=4096, description="Width to which both sides are projected.")
    mask_duplicates: bool = Field(
        default=True, description="Equal (user, item) pairs in a batch, and equal texts, are no negatives."
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Dropout in the heads.")
    learning_rate: float = Field(default=1e-3, gt=0, lt=1, description="AdamW's learning rate at the start.")
    weight_decay: float = Field(default=1e-3, ge=0, description="AdamW's weight decay.")
    plm_mode: PlmMode = Field(default="frozen", description="What of the PLM is trained too.")
    plm: PlmSpec = Field(default=PlmSpec(pooling="cls"), description="The PLM that reads the prompts.")
    plm_learning_rate: float = Field(
        default=1e-4, gt=0, lt=1, description="AdamW's learning rate of the PLM's weights at the start."
    )
    cache_megabytes: int = Field(
        default=1024, ge=0, description="frozen: memory for states of texts that need not be made again."
    )
    health_rows: int = Field(default=2048, ge=8, le=8192, description="Validation rows of the health report.")

    @model_validator(mode="before")
    @classmethod
    def _with_first_token(cls, content: Any) -> Any:
        """A PLM that is named or cut without a word about pooling keeps FLIP's, the first token."""
        if not isinstance(content, dict) or not isinstance(content.get("plm"), dict):
            return content
        return {**content, "plm": {"pooling": "cls", **content["plm"]}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.icl_weight + self.mlm_weight + self.mtm_weight:
            raise ValueError("icl_weight, mlm_weight and mtm_weight are all 0; leave one of them on")
        return self
