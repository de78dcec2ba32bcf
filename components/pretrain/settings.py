"""The settings of the pretrain step."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PretrainSettings(BaseModel):
    """How the sequence encoder learns to tell what is hidden of users' histories (SRP4CTR)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=20, ge=1, le=1000, description="Epochs over the sequences.")
    batch_size: int = Field(default=128, ge=2, le=65536, description="Sequences of a batch, of about equal length.")
    learning_rate: float = Field(default=1e-3, gt=0, lt=1, description="Adam's learning rate at the start.")
    power: float = Field(default=1.0, gt=0, le=4, description="Power of the learning rate's polynomial decay to 0.")
    item_rate: float = Field(default=0.2, gt=0, lt=1, description="Share of events whose item is hidden.")
    behaviour_rate: float = Field(default=0.2, gt=0, lt=1, description="Share of events whose behaviour is hidden.")
    samples: int = Field(default=512, ge=1, le=65536, description="Values in the sampled softmax of a large attribute.")
    held_out: float = Field(default=0.05, gt=0, lt=0.5, description="Share of the users whose loss is reported.")
    checkpoint_minutes: float = Field(
        default=10.0, gt=0, description="Minutes between checkpoints, from which a killed training goes on."
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Threads on a CPU; 0: as many as there are cores.")
