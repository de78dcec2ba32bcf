"""The settings of training."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class ProcessSettings(BaseModel):
    """On how many machines and in how many processes a model is trained, and how often it is kept that far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: int = Field(
        default=0, ge=0, le=1024, description="Processes of a machine; 0: one per GPU, or one on a CPU."
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Machines that train together, as a Kubeflow TrainJob where there are more.",
    )
    nodes_minutes: float = Field(
        default=600.0, gt=0, description="Minutes that a training on several machines may take."
    )
    checkpoint_minutes: float = Field(
        default=10.0, gt=0, description="Minutes between checkpoints, from which a killed training goes on."
    )
    batch_size: int = Field(description="Rows of a batch, those of all processes together.")

    @model_validator(mode="after")
    def _each_has_rows(self) -> Self:
        sharing = max(1, self.processes) * self.nodes
        if self.batch_size < sharing:
            raise ValueError(f"batch_size: {sharing} processes share {self.batch_size} rows; write at least {sharing}")
        return self


class StageSettings(ProcessSettings):
    """How long, in what batches and how fast a model learns before it learns from clicks."""

    epochs: int = Field(default=1, ge=1, le=1000, description="Epochs over the rows.")
    rows: int = Field(default=0, ge=0, description="Rows of the train part, drawn at random; 0: all of them.")
    batch_size: int = Field(default=1024, ge=2, le=65536, description="Rows of a batch, each other's negatives.")
    learning_rate: float = Field(default=5e-4, gt=0, lt=1, description="AdamW's learning rate after the warm-up.")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay.")

    @field_validator("rows")
    @classmethod
    def _more_than_one(cls, rows: int) -> int:
        if rows == 1:
            raise ValueError("one row has no negatives; write at least 2, or 0 for all rows")
        return rows


class LoopSettings(ProcessSettings):
    """How a collaborative model is trained on clicks."""

    epochs: int = Field(default=20, ge=1, le=1000, description="Epochs at most.")
    batch_size: int = Field(default=2048, ge=2, description="Rows of a batch.")
    learning_rate: float = Field(default=1e-3, gt=0, lt=1, description="Adam's learning rate.")
    embedding_l2: float = Field(default=1e-4, ge=0, description="L2 penalty on the embedding rows of a batch.")
    embedding_rate: float = Field(default=1.0, ge=0, le=100, description="Factor on the embeddings' learning rate.")
    frozen_epochs: int = Field(default=0, ge=0, le=1000, description="Epochs before the embeddings are trained too.")
    plm_learning_rate: float = Field(
        default=5e-5, gt=0, lt=1, description="flip, strategies plm and both: AdamW's rate of the PLM's weights."
    )
    patience: int = Field(default=2, ge=1, description="Epochs without a better validation AUC before it stops.")
    plateau_factor: float = Field(
        default=1.0, gt=0, le=1, description="Factor on the learning rate after an epoch without a better AUC."
    )
