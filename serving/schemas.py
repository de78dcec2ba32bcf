"""What the service takes and gives. Bounds are part of the schema, so that the OpenAPI page states them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_ITEMS = 1000
MAX_KEY = 256


def _key(value: Any) -> Any:
    """Ids may be written as whole numbers; they are strings everywhere else."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Key = Annotated[str, BeforeValidator(_key), Field(min_length=1, max_length=MAX_KEY)]
ContextValue = str | float | int | list[str] | None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RankRequest(_Request):
    """Rank these items for this user."""

    user_id: Key = Field(description="The user; one never seen is scored as cold.")
    item_ids: list[Key] = Field(min_length=1, max_length=MAX_ITEMS, description="The candidates.")
    context: dict[str, ContextValue] = Field(default_factory=dict, description="Context fields known at this moment.")
    top_k: int | None = Field(default=None, ge=1, le=MAX_ITEMS, description="How many items to return; all if not set.")


class Pair(_Request):
    """One user, one item, and the context."""

    user_id: Key
    item_id: Key
    context: dict[str, ContextValue] = Field(default_factory=dict)


class PredictRequest(_Request):
    """Click probabilities of explicit pairs."""

    pairs: list[Pair] = Field(min_length=1, max_length=MAX_ITEMS)


class RankedItem(BaseModel):
    """An item with its click probability; `cold` if the model has never seen it."""

    item_id: str
    probability: float
    cold: bool


class RankResponse(BaseModel):
    """The candidates by falling probability; equal ones keep the order in which they were asked."""

    request_id: str
    model_version: str
    feature_service_hash: str
    user_cold: bool
    items: list[RankedItem]


class PredictedPair(BaseModel):
    """A pair's click probability; `cold` names the sides that the model has never seen."""

    user_id: str
    item_id: str
    probability: float
    cold: list[str]


class PredictResponse(BaseModel):
    """Click probabilities in the order asked."""

    request_id: str
    model_version: str
    feature_service_hash: str
    pairs: list[PredictedPair]
