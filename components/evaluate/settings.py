"""Settings of the evaluate step."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluateSettings(BaseModel):
    """How the arms are measured on the test part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resamples: int = Field(default=1000, ge=0, le=100_000, description="Bootstrap resamples; 0 for DeLong alone.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Mass of every interval.")
    seed: int = Field(default=1, ge=0, lt=2**31, description="Seed of the resamples and of the degradation's rows.")
    slice_values: int = Field(default=10, ge=1, le=1000, description="Most frequent values reported of a slice field.")
    reliability_bins: int = Field(default=10, ge=1, le=1000, description="Bins of the reliability curve.")
    curve_points: int = Field(default=200, ge=2, le=10_000, description="Points kept of a ROC or PR curve, at most.")
    degradation: bool = Field(default=True, description="Re-score the candidate with features missing or stale?")
    degradation_rows: int = Field(
        default=20_000, ge=100, description="Rows drawn from the valid and the test part for the degradation table."
    )
    batch_size: int = Field(default=2048, ge=1, description="Rows scored at once.")
    threads: int = Field(default=0, ge=0, le=1024, description="Threads on a CPU; 0: as many as there are cores.")
