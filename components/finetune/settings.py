"""The settings of the finetune step."""

from __future__ import annotations

from pydantic import Field

from components.training.settings import LoopSettings


class FinetuneSettings(LoopSettings):
    """How the collaborative model is trained on clicks, the same for every arm."""

    threads: int = Field(default=0, ge=0, le=1024, description="Threads on a CPU; 0: as many as there are cores.")
