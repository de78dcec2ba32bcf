"""Settings of the register step: what the gate asks of a candidate, and the run that asks."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Interval = Literal["delong", "bootstrap", "bootstrap_users"]


class GateSettings(BaseModel):
    """What a candidate must be worth: floors decide whether it may serve at all, the champion whether it should.

    A figure that is missing or not a number passes nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_auc: float = Field(default=0.55, ge=0, le=1, description="AUC on the test part, at least.")
    max_logloss: float = Field(default=0.69, gt=0, description="Log loss on the test part in nats, at most.")
    calibration: tuple[float, float] = Field(
        default=(0.8, 1.25), description="Band of expected over observed positives, [low, high]."
    )
    slice_floors: dict[str, float] = Field(
        default={"warm": 0.52}, description="AUC by slice, at least, such as {cold: 0.6, long_tail: 0.55}."
    )
    slice_min_rows: int = Field(default=200, ge=1, description="A slice with fewer test rows is not judged.")
    min_lift_over_champion: float = Field(
        default=0.0, ge=0, le=1, description="AUC above the champion's on the same rows; must be exceeded."
    )
    certain_lift_over_champion: bool = Field(
        default=True, description="Must the interval's lower bound exceed min_lift_over_champion too?"
    )
    min_lift_of_alignment: float | None = Field(
        default=None, ge=-1, le=1, description="AUC above the collaborative-only arm's, at least; null asks nothing."
    )
    certain_lift_of_alignment: bool = Field(
        default=False, description="Must the interval's lower bound reach min_lift_of_alignment too?"
    )
    interval: Interval = Field(
        default="delong", description="Interval of a lift; bootstrap_users resamples users with all their rows."
    )
    incompatible_champion: Literal["replace", "keep"] = Field(
        default="replace", description="A champion that cannot score the candidate's rows: floors alone, or it stays."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.calibration
        if not 0 < low < high:
            raise ValueError(
                f"calibration must be [low, high] with 0 < low < high, such as [0.8, 1.25], not {[low, high]}"
            )
        for name, floor in self.slice_floors.items():
            if not 0 <= floor <= 1:
                raise ValueError(f"slice_floors.{name} is an AUC between 0 and 1, not {floor}")
        return self


class RunInfo(BaseModel):
    """The pipeline run that registers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str = Field(default="", pattern=r"^[\w.:-]*$", description="Its name; found from its results if empty.")
    dataset: str = Field(min_length=1, description="Name of an embedded data set, or path of a DatasetSpec.")
    method: str = Field(description="Name of the candidate's arm.")
    backbone: str = Field(description="Name of the collaborative model.")
    seed: int = Field(description="Seed of the run.")
    data_docs: str = Field(default="", description="Where the validation's Data Docs lie.")
    pipeline_run: str | None = Field(default=None, description="Id of the run in Kubeflow.")
