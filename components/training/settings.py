"""The settings of the training loop."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class LoopSettings(BaseModel):
    """How a collaborative model is trained on clicks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=20, ge=1, le=1000, description="Epochs at most.")
    batch_size: int = Field(default=2048, ge=2, description="Rows of a batch.")
    learning_rate: float = Field(default=1e-3, gt=0, lt=1, description="Adam's learning rate.")
    embedding_l2: float = Field(default=1e-4, ge=0, description="L2 penalty on the embedding rows of a batch.")
    embedding_rate: float = Field(default=1.0, ge=0, le=100, description="Factor on the embeddings' learning rate.")
    frozen_epochs: int = Field(default=0, ge=0, le=1000, description="Epochs before the embeddings are trained too.")
    patience: int = Field(default=2, ge=1, description="Epochs without a better validation AUC before it stops.")
    plateau_factor: float = Field(
        default=1.0, gt=0, le=1, description="Factor on the learning rate after an epoch without a better AUC."
    )
