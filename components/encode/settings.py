"""The settings of the encode step."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.models.plm import PlmSpec

Precision = Literal["fp32", "bf16", "int8"]
Device = Literal["cpu", "cuda"]


class EncodeSettings(BaseModel):
    """Which PLM encodes the texts, with what arithmetic, on which devices, and where encodings are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plm: PlmSpec = PlmSpec()
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        default="auto", description="auto: bf16 on a GPU, fp32 on a CPU; int8 (CPU): quantised, refused if not alike."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: every GPU there is, else the CPU."
    )
    processes: int = Field(default=0, ge=0, le=1024, description="Worker processes; 0: one per GPU, or per core.")
    batch_tokens: int = Field(default=0, ge=0, description="Tokens of a batch; 0: 2,048 on a CPU, 65,536 on a GPU.")
    block: int = Field(default=4096, ge=1, le=65536, description="Texts after which finished encodings are kept.")
    cache: str = Field(default="", description="Folder or fsspec URL of kept encodings; empty: beside the runs.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.precision == "int8" and self.device == "cuda":
            raise ValueError("precision int8 is for the CPU; write device: cpu, or precision: bf16")
        if self.precision == "bf16" and self.device == "cpu":
            raise ValueError("precision bf16 is for a GPU; write precision: fp32 or int8 for the CPU")
        return self
