"""The settings of a collaborative model. No torch, so that the command line can read them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BackboneConfig(BaseModel):
    """One set of settings for every backbone; each reads what it needs and leaves the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding_dim: int = Field(default=32, ge=1, le=1024, description="Width of an embedding row.")
    hidden: tuple[int, ...] = Field(default=(256, 128, 64), min_length=1, description="Widths of the MLP's layers.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout after each layer of the MLP.")
    batch_norm: bool = Field(default=True, description="Batch normalisation in the MLP.")
    layers: int = Field(default=3, ge=1, le=16, description="autoint: self-attention layers.")
    heads: int = Field(default=2, ge=1, le=64, description="autoint(_history), bst, srp4ctr: heads of each layer.")
    attention_dim: int = Field(default=32, ge=1, le=1024, description="autoint, bst: width of a layer, heads together.")
    cross_layers: int = Field(default=3, ge=1, le=16, description="dcn, dcnv2: cross layers.")
    cross_rank: int = Field(default=0, ge=0, le=1024, description="dcnv2: rank of a cross layer; 0 for full rank.")
    cross_experts: int = Field(default=1, ge=1, le=64, description="dcnv2: low-rank experts of a cross layer.")
    product: Literal["inner", "outer", "both"] = Field(default="both", description="pnn: the product layer's kind.")
    reduction: int = Field(default=3, ge=1, le=64, description="fibinet: reduction ratio of the SENET layer.")
    bilinear: Literal["all", "each", "interaction"] = Field(default="each", description="fibinet: who shares a matrix.")
    cin: tuple[int, ...] = Field(default=(64, 64), min_length=1, description="xdeepfm: feature maps of each CIN layer.")

    activation: tuple[int, ...] = Field(
        default=(64, 32), min_length=1, description="din: widths of its activation unit."
    )
    sequence_layers: int = Field(default=1, ge=1, le=16, description="bst: transformer layers over the history.")

    text_rows: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="autoint_history: components kept of each item's text vector, for a row of its own; 0: none.",
    )

    encoder_layers: int = Field(default=2, ge=1, le=16, description="srp4ctr: layers of the sequence encoder.")
    cross_attention: Literal["none", "uni", "sink", "full"] = Field(
        default="uni", description="srp4ctr: how candidate and events meet; uni: events never see the candidate."
    )
    queries: int = Field(default=4, ge=0, le=64, description="srp4ctr: queries to the sequence; 0 for none.")

    def of_encoder(self) -> Self:
        """The settings of srp4ctr's encoder alone: what it learns from behaviour does not depend on who reads it."""
        return self.model_copy(update={"cross_attention": "none", "queries": 0})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attention_dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide attention_dim={self.attention_dim}; change one of them")
        if self.cross_experts > 1 and self.cross_rank == 0:
            raise ValueError("cross_experts above 1 needs low-rank experts; set cross_rank, such as 32")
        if min((*self.hidden, *self.cin, *self.activation)) < 1:
            raise ValueError("hidden, cin and activation are widths of layers; write whole numbers from 1 on")
        return self
