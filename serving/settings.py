"""Settings of the service, each an environment variable: `item_age` is TANDEM_SERVE_ITEM_AGE."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from components.dataset.errors import UserError

#: In the folder of models: the version behind each alias, and the aliases that are served.
ALIASES = "aliases.json"
CHAMPION, CANDIDATE = "champion", "candidate"

PREFIX = "TANDEM_SERVE_"
#: The most candidates that a request may ever name; `max_candidates` may say less.
MAX_ITEMS = 1000


class ServeSettings(BaseModel):
    """What the service serves, how much of it at once, and what it does when something is late."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    models: Path | None = Field(default=None, description="Folder that `tandem follow` keeps; the service follows it.")
    version: str | None = Field(default=None, description="Stay on this registered version, whatever the aliases say.")
    model: str | None = Field(default=None, description="Without `models`: tag of a model in the BentoML store.")
    poll: float = Field(default=1.0, gt=0, description="Seconds between looks at `models`.")
    canary: float = Field(default=0.0, ge=0, le=1, description="Share of users that the alias `candidate` answers.")
    feature_store: Path = Field(
        default=Path("feature_store.yaml"), description="Feast configuration of the data set's project."
    )

    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Callers say it as 'authorization: Bearer KEY'; none is asked if empty.",
    )
    max_candidates: int = Field(default=MAX_ITEMS, ge=1, le=MAX_ITEMS, description="Items or pairs of a request.")
    max_body: int = Field(default=2**20, ge=1024, description="Bytes of a request's body.")
    max_concurrency: int = Field(default=64, ge=1, description="Requests at once; any more are answered 429.")
    threads: int = Field(
        default=4, ge=1, le=64, description="Reads of the online store, and writes of feedback, at once."
    )
    timeout: float = Field(
        default=5.0, gt=0, description="Seconds; a request that takes longer is answered 504 and stopped."
    )

    feature_deadline: float = Field(default=0.25, gt=0, description="Seconds that a request waits for features.")
    breaker_failures: int = Field(default=5, ge=1, description="Reads that fail in a row before reading pauses.")
    breaker_pause: float = Field(default=1.0, gt=0, description="Seconds between attempts while reading pauses.")
    item_age: float = Field(default=300.0, gt=0, description="Seconds after which an item's row is read again.")
    item_capacity: int = Field(default=200_000, ge=1, description="Items kept in the process.")
    registry_age: float = Field(default=15.0, gt=0, description="Seconds between looks at the feature registry.")

    log: Path | None = Field(default=None, description="Folder of the prediction log and of the feedback.")
    log_share: float = Field(default=0.1, ge=0, le=1, description="Share of the requests whose predictions are logged.")
    log_seconds: float = Field(default=60.0, gt=0, description="A file of predictions is closed at least this often.")
    log_megabytes: int = Field(default=1024, ge=1, description="Of each kind of log; the oldest files go.")

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> ServeSettings:
        """The settings that the environment gives; an empty variable is one that is not set.

        Raises:
            UserError: a setting is unknown, or has an impossible value.
        """
        named = {name: text for name, text in environment.items() if name.startswith(PREFIX) and text}
        given = {name.removeprefix(PREFIX).lower(): text for name, text in named.items()}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise UserError("; ".join(_explain(problem) for problem in error.errors())) from None


def _explain(problem: Any) -> str:
    name = PREFIX + str(problem["loc"][0]).upper()
    if problem["type"] == "extra_forbidden":
        return f"{name} is no setting; one of: {', '.join(sorted(ServeSettings.model_fields))}"
    return f"{name}: {problem['msg']}"
