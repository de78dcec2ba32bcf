"""Who is champion, and who was: the log of all moves of the alias, and the aliases made to agree with it.

MLflow keeps no history of aliases and has no compare-and-set for them. It does number the versions of a model one
by one, on SQLite as on a server: so the log is a registered model of its own, `<model>-alias-log`, whose versions
are the moves. A move says after which move it was meant; of two that were meant after the same one, the first in
the log counts and the other never happened. An entry is final once it is in the log: whoever comes next carries
out a move whose process died before it reached the aliases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from components.dataset.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous_champion"
CANDIDATE = "candidate"

PROMOTED = "promoted"
ROLLED_BACK = "rolled back"
#: To a version that is the champion before with rows for more users and items.
GREW = "rows added"
BY_HAND = "moved by hand"
PREFIX = "tandem."
DONE = PREFIX + "done"
SCHEME = "tandem-alias-log"
PAGE = 200
COLLISIONS = {"BAD_REQUEST", "TEMPORARILY_UNAVAILABLE"}
PAUSES = (0.05, 0.2, 0.8)

T = TypeVar("T")


@dataclass(frozen=True)
class Move:
    """One move of the champion alias: from `number` on, `version` is champion and `previous` was it before.

    `after` is the number of the move that was the last one when this one was asked for; versions are None where
    the alias points nowhere.
    """

    number: int
    after: int
    action: str
    version: str | None
    previous: str | None
    run_id: str
    at: str
    done: bool = True

    def to_json(self) -> dict[str, Any]:
        """The move as plain JSON content."""
        return {name: value for name, value in asdict(self).items() if name not in {"after", "done"}}


class ChampionMovedError(Exception):
    """Another run moved the champion alias meanwhile. `champion` is the version that holds it now."""

    def __init__(self, champion: str | None) -> None:
        super().__init__(f"the champion is now version {champion}" if champion else "there is no champion any more")
        self.champion = champion


def log_name(model: str) -> str:
    """The registered model whose versions are the moves."""
    return f"{model}-alias-log"


def moves(client: MlflowClient, model: str) -> list[Move]:
    """The moves that counted, oldest first."""
    counted: list[Move] = []
    for entry in sorted(search_versions(client, log_name(model)), key=lambda entry: int(entry.version)):
        move = _read(entry)
        if move.after == (counted[-1].number if counted else 0):
            counted.append(move)
    return counted


def claim(
    client: MlflowClient, model: str, version: str, expected: str | None, run_id: str, action: str = PROMOTED
) -> None:
    """Make `version` champion in the log; the aliases follow with `settle`. Again for the same version: no change.

    Args:
        client: MLflow.
        model: Name of the registered model.
        version: The version to promote.
        expected: The champion that it was found better than; None where there was none.
        run_id: The run that asks.
        action: PROMOTED or GREW.

    Raises:
        ChampionMovedError: another version became champion meanwhile.
    """
    log = settle(client, model)
    if any(move.version == version and move.action == action for move in log):
        return
    champion = log[-1].version if log else None
    if champion != expected:
        raise ChampionMovedError(champion)
    if not _append(client, model, log, action, version, champion, run_id):
        raise ChampionMovedError(settle(client, model)[-1].version)


def roll_back(client: MlflowClient, model: str, run_id: str, to: str | None = None) -> Move:
    """Give the champion alias back to the version that held it before; twice goes two champions back.

    With `to` it goes back as far as that version.

    Raises:
        UserError: there is no earlier champion, `to` was none, or another process moved the alias at the same moment.
    """
    log = settle(client, model)
    earlier = [version for version in _stack(log)[:-1] if version and _exists(client, model, version)]
    if to is not None:
        if to not in earlier:
            raise UserError(f"{model}: version {to} was no earlier champion; one of: {', '.join(earlier) or 'none'}")
        earlier = earlier[: len(earlier) - earlier[::-1].index(to)]
    if not earlier:
        raise UserError(f"{model}: there is no earlier champion to go back to; see `tandem registry history`")
    below = earlier[-2] if len(earlier) > 1 else None
    if not _append(client, model, log, ROLLED_BACK, earlier[-1], below, run_id):
        raise UserError(f"{model}: the champion moved at this moment; look at `tandem registry history` and try again")
    return settle(client, model)[-1]


def settle(client: MlflowClient, model: str) -> list[Move]:
    """Make the aliases what the log says, the champion last; an alias moved by hand enters the log instead.

    Returns:
        The moves that counted, oldest first.
    """
    wrote = False
    while True:
        log = moves(client, model)
        champion = alias_version(client, model, CHAMPION)
        if not log and champion is None:
            return log
        if log and log[-1].done and log[-1].version == champion:
            return log
        if log and (wrote or not log[-1].done):
            # The log is read again after the aliases are written: a slow process cannot leave an older champion.
            _carry_out(client, model, log[-1])
            wrote = True
        else:
            _append(client, model, log, BY_HAND, champion, log[-1].version if log else None, "")


def alias_version(client: MlflowClient, model: str, alias: str) -> str | None:
    """The version that an alias points at, None where there is no such alias or model."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        # A server with users answers for a model that is not there as for one that one may not see.
        if _is_absent(error) or not client.search_registered_models(f"name = '{model}'"):
            return None
        raise


def search_versions(client: MlflowClient, model: str, tags: Mapping[str, str] | None = None) -> list[ModelVersion]:
    """Every version of a model, of those with all the given tags; none where there is no such model."""
    query = [f"name = '{model}'", *(f"tags.`{key}` = '{value}'" for key, value in (tags or {}).items())]
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(" and ".join(query), max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def ensure_model(client: MlflowClient, model: str, description: str) -> None:
    """Create a registered model unless it is there."""
    from mlflow.exceptions import MlflowException

    try:
        persist(client.create_registered_model, model, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _append(
    client: MlflowClient,
    model: str,
    log: list[Move],
    action: str,
    version: str | None,
    previous: str | None,
    run_id: str,
) -> bool:
    """Whether the move, meant to follow the last one of `log`, was the first to do so."""
    after = log[-1].number if log else 0
    move = Move(0, after, action, version, previous, run_id, datetime.now(UTC).isoformat(timespec="seconds"))
    ensure_model(client, log_name(model), f"The moves of the alias '{CHAMPION}' of {model}, one a version. Never edit.")
    # A version must have a source; a move has none.
    entry = persist(
        client.create_model_version,
        log_name(model),
        f"{SCHEME}:/{model}",
        tags=_tags(move),
        description=action,
        await_creation_for=0,
    )
    counted = moves(client, model)
    return any(move.number == int(entry.version) for move in counted)


def _tags(move: Move) -> dict[str, str]:
    said = {key: value for key, value in asdict(move).items() if key not in {"number", "done"} and value is not None}
    done = {DONE: "true"} if move.action == BY_HAND else {}
    return {PREFIX + key: str(value) for key, value in said.items()} | done


def _read(entry: ModelVersion) -> Move:
    said = {key.removeprefix(PREFIX): value for key, value in entry.tags.items()}
    return Move(
        number=int(entry.version),
        after=int(said["after"]),
        action=said["action"],
        version=said.get("version"),
        previous=said.get("previous"),
        run_id=said.get("run_id", ""),
        at=said["at"],
        done=DONE in entry.tags,
    )


def _carry_out(client: MlflowClient, model: str, move: Move) -> None:
    for alias, version in ((PREVIOUS_CHAMPION, move.previous), (CHAMPION, move.version)):
        if version is None:
            persist(client.delete_registered_model_alias, model, alias)
        else:
            persist(client.set_registered_model_alias, model, alias, version)
    persist(client.set_model_version_tag, log_name(model), str(move.number), DONE, "true")


def persist(write: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a write that may meet another process's: MLflow reports a collision in its database as an error."""
    from mlflow.exceptions import MlflowException

    for pause in PAUSES:
        try:
            return write(*args, **kwargs)
        except MlflowException as error:
            if error.error_code not in COLLISIONS:
                raise
            time.sleep(pause)
    return write(*args, **kwargs)


def _stack(log: list[Move]) -> list[str | None]:
    """Champions in their order, the present one last, those that were rolled back left out."""
    stack: list[str | None] = []
    for move in log:
        if move.action == ROLLED_BACK:
            while stack and stack[-1] != move.version:
                stack.pop()
        else:
            stack.append(move.version)
    return stack


def _exists(client: MlflowClient, model: str, version: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        if _is_absent(error):
            return False
        raise
    return True


def _is_absent(error: Any) -> bool:
    # An unknown alias of a known model comes as an invalid parameter.
    return error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
