"""The settings of the finetune step."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.objectives.settings import ContrastSettings
from components.training.settings import LoopSettings


class AuxiliarySettings(ContrastSettings):
    """The alignment as a term beside the clicks."""

    weight: float = Field(default=0.0, ge=0, le=1000, description="Weight of the term; 0 leaves it out.")
    rows: int = Field(default=0, ge=0, description="Rows of a batch that it looks at; 0: all of them.")


class FinetuneSettings(LoopSettings):
    """How the collaborative model is trained on clicks, the same for every arm."""

    threads: int = Field(default=0, ge=0, le=1024, description="Threads on a CPU; 0: as many as there are cores.")
    hidden_users: float = Field(default=0.0, ge=0, lt=1, description="Share of rows whose user is shown as a new one.")
    hidden_items: float = Field(default=0.0, ge=0, lt=1, description="Share of rows whose item is shown as a new one.")
    hidden_owners: int = Field(
        default=1, ge=1, description="What at most so many users or items share is hidden with each of them."
    )
    map_rows: tuple[Literal["user", "item"], ...] = Field(
        default=(), description="Sides whose ids' rows a learnt map of their texts is added to; new ids get rows by it."
    )
    auxiliary: AuxiliarySettings = AuxiliarySettings()
    cache_megabytes: int = Field(
        default=1024, ge=0, description="flip, strategies plm and both: memory for a frozen PLM's states."
    )
    frozen: bool = Field(default=False, description="srp4ctr: leave the pre-trained sequence encoder as it is.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.map_rows)) < len(self.map_rows):
            raise ValueError("map_rows names a side twice; write [user, item], or one of them")
        return self

    @property
    def reads_texts(self) -> bool:
        """Whether clicks are learnt beside texts."""
        return bool(self.map_rows) or self.auxiliary.weight > 0
