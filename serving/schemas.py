"""What the service takes and gives. Bounds are part of the schema, so that the OpenAPI page states them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from serving.settings import MAX_ITEMS

MAX_KEY = 256
MAX_VALUES = 256
MAX_FIELDS = 64
#: Whole numbers up to here are the same as 64-bit floats.
EXACT = 2**53


def _key(value: Any) -> Any:
    """Ids may be written as whole numbers; they are strings everywhere else."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Key = Annotated[str, BeforeValidator(_key, json_schema_input_type=str | int), Field(min_length=1, max_length=MAX_KEY)]
Word = Annotated[StrictStr, Field(max_length=MAX_KEY)]
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Whole = Annotated[StrictInt, Field(ge=-EXACT, le=EXACT)]
ContextValue = Word | Whole | Number | Annotated[list[Word], Field(max_length=MAX_VALUES)] | None
Context = Annotated[
    dict[Word, ContextValue], Field(max_length=MAX_FIELDS, description="Context fields known at this moment.")
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RankRequest(_Request):
    """Rank these items for this user."""

    user_id: Key = Field(description="The user; one without a row is scored as cold.")
    item_ids: list[Key] = Field(min_length=1, max_length=MAX_ITEMS, description="The candidates.")
    context: Context = {}
    top_k: int | None = Field(
        default=None, ge=1, le=MAX_ITEMS, strict=True, description="How many items to return; all if not set."
    )


class Pair(_Request):
    """One user, one item, and the context."""

    user_id: Key
    item_id: Key
    context: Context = {}


class PredictRequest(_Request):
    """Click probabilities of explicit pairs."""

    pairs: list[Pair] = Field(min_length=1, max_length=MAX_ITEMS)


class Degraded(BaseModel):
    """A feature view that could not be used for some users or items; the model's defaults stand in for its features."""

    view: str
    reason: Literal["missing", "stale", "future", "unreachable"]
    keys: int = Field(description="Number of users or items.")


class _Answer(BaseModel):
    # pydantic keeps names that begin with model_ for itself unless told otherwise.
    model_config = ConfigDict(protected_namespaces=())

    request_id: str
    model_version: str
    feature_service_hash: str
    degraded: list[Degraded] = Field(description="Empty where all features were there and young enough.")


class RankedItem(BaseModel):
    """An item with its click probability; `cold` if the model has no row for it."""

    item_id: str
    probability: float
    cold: bool


class RankResponse(_Answer):
    """The candidates by falling probability; equal ones keep the order in which they were asked."""

    user_cold: bool
    items: list[RankedItem]


class PredictedPair(BaseModel):
    """A pair's click probability; `cold` names the sides that the model has no row for.

    Pairs of different users may be answered by different versions while a candidate is tried out.
    """

    model_config = ConfigDict(protected_namespaces=())

    user_id: str
    item_id: str
    model_version: str
    probability: float
    cold: list[str]


class PredictResponse(_Answer):
    """Click probabilities in the order asked."""

    pairs: list[PredictedPair]


class Event(_Request):
    """What became of an item that was ranked or predicted.

    One that names its user can enter the user's online history at once, where `tandem push --follow` runs.
    """

    request_id: str = Field(pattern=r"^[0-9a-f]{32}$", description="The `request_id` of the response.")
    item_id: Key
    clicked: bool = Field(default=True, strict=True, description="False where it is known that no click came.")
    at: AwareDatetime | None = Field(default=None, description="When it happened; now if not given.")
    user_id: Key | None = Field(default=None, description="The user, for the online history.")
    context: Context = Field(default={}, description="Context fields that a history keeps of its events.")


class FeedbackRequest(_Request):
    """Events that belong to earlier responses."""

    events: list[Event] = Field(min_length=1, max_length=MAX_ITEMS)


class FeedbackResponse(BaseModel):
    """The number of events that were written down."""

    recorded: int
