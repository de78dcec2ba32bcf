"""The settings of the contrast between texts and table."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ContrastSettings(BaseModel):
    """How texts and tabular rows are brought into one space and told apart (CTRL, section 3.3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(default=0.7, gt=0, le=100, description="Temperature of the contrast.")
    similarity: Literal["max_sim", "cosine"] = Field(
        default="max_sim", description="max_sim: over sub-spaces, as in the paper; cosine: of the whole vectors."
    )
    projection: int = Field(default=128, ge=1, le=4096, description="Width to which both sides are projected.")
    subspaces: int = Field(default=4, ge=1, le=64, description="Number M of sub-spaces.")
    width: int = Field(default=32, ge=1, le=1024, description="Width of a sub-space.")
    normalise: bool = Field(default=True, description="L2-normalise the sub-vectors.")
    liked_texts: bool = Field(
        default=False,
        description="Beside the user's and the item's text the mean of those of the liked items in the history.",
    )
    mask_duplicates: bool = Field(
        default=True, description="Equal (user, item) pairs in a batch, and equal texts, are no negatives."
    )
