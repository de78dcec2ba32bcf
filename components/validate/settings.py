"""Settings of the validate step."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Severity = Literal["info", "warning", "critical"]


class ValidateSettings(BaseModel):
    """What the data must be like, beyond what the DatasetSpec says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stop_on: Literal["critical", "warning"] = Field(
        default="critical", description="Severity of a failed expectation from which on the run stops."
    )
    min_rows: int = Field(default=100, ge=1, description="Fewer impressions with a label are critical.")
    max_null_share: float = Field(default=0.2, ge=0, le=1, description="More empty values of a field are a warning.")
    max_unknown_share: float = Field(
        default=0.05, ge=0, le=1, description="More impressions of users or items without a row are a warning."
    )
    max_duplicate_share: float = Field(default=0.01, ge=0, le=1, description="More repeated impressions are a warning.")
    min_label_rate: float = Field(default=0.001, ge=0, lt=1, description="A lower share of positives is a warning.")
    max_label_rate: float = Field(default=0.9, gt=0, le=1, description="A higher share of positives is a warning.")
    earliest_year: int = Field(default=1990, ge=1678, le=2262, description="An earlier time stamp is critical.")
    future_hours: float = Field(
        default=24, ge=0, le=87_600, description="A time stamp that lies further ahead is critical."
    )
    max_rows: int = Field(
        default=5_000_000, ge=1_000, description="Expectations see at most this many rows of a table, evenly spaced."
    )

    max_row_drift: float = Field(
        default=0.5, gt=0, lt=1, description="Share by which a table may have grown or shrunk since the previous run."
    )
    max_share_drift: float = Field(
        default=0.1, gt=0, le=1, description="Change of the share of positives, empties or a value that is no warning."
    )
    max_mean_drift: float = Field(
        default=0.5, gt=0, description="Change of a number's mean that is no warning, in its standard deviations."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_label_rate >= self.max_label_rate:
            raise ValueError(
                f"min_label_rate {self.min_label_rate} must be below max_label_rate {self.max_label_rate}; lower it"
            )
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is above max_rows {self.max_rows}; raise max_rows")
        return self
