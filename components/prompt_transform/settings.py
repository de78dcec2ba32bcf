"""The settings of the prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from components.models.plm import PlmSpec

FormName = Literal["natural", "field-value", "field:value", "nameless-field", "values_only"]


class PromptSettings(BaseModel):
    """How users, items and impressions are said in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: FormName = Field(default="natural", description="Prompt form; CTRL section 4.6 compares the five.")
    granularity: Literal["entity", "instance"] = Field(
        default="entity", description="One text per user and one per item, or one text per impression."
    )
    history_items: int = Field(
        default=5, ge=0, le=1000, description="instance: most recent items of the user's history in the prompt."
    )
    max_tokens: int = Field(default=256, ge=8, le=32768, description="Longer prompts are cut, old history first.")
    plm: PlmSpec | None = Field(
        default=PlmSpec(), description="Its tokenizer counts the tokens: name it as under encode.plm; null counts none."
    )
