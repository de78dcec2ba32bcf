"""Ranking: a request's rows are gathered, scored in one call, and put in order. No HTTP here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np

from components.dataset.moment import request_context
from components.dataset.scoring import stoppable
from components.dataset.spec import EVENT_TIMESTAMP, ITEM_KEY, USER_KEY, DatasetSpec, Kind
from components.dataset.vocabulary import Vocabulary
from serving.features import NOTHING, Gathered, OnlineFeatures
from serving.journal import Prediction, PredictionLog
from serving.metrics import CALLS_STOPPED, DEGRADED_ANSWERS, PART_SECONDS
from serving.online import Row
from serving.schemas import Degraded, PredictedPair, PredictResponse, RankedItem, RankResponse
from serving.scorer import Flags, Probabilities, Scorer

FEATURE_SECONDS, MODEL_SECONDS = PART_SECONDS.labels("features"), PART_SECONDS.labels("model")
#: Seconds of the model for which the event loop may stand still: much less than others wait for their features.
LONG = 0.02
#: Columns that come from the request itself.
KEYS = frozenset({USER_KEY, ITEM_KEY, EVENT_TIMESTAMP})


Value = TypeVar("Value")


class RequestError(ValueError):
    """The request is well-formed but does not fit the model or the service's limits."""


@dataclass(frozen=True)
class _Begun:
    """A request on its way: its id, its moment, and its features."""

    request_id: str
    at: datetime
    gathered: Gathered


@dataclass(frozen=True)
class Ranking:
    """An answer: what every response says, and the items by falling probability, each with whether it is cold."""

    stamp: dict[str, Any]
    user_cold: bool
    items: list[tuple[str, float, bool]]

    def response(self) -> RankResponse:
        """The answer as it is described to callers."""
        items = [RankedItem(item_id=key, probability=score, cold=cold) for key, score, cold in self.items]
        return RankResponse(**self.stamp, user_cold=self.user_cold, items=items)


@dataclass(frozen=True)
class Predictions:
    """An answer: what every response says, and of each pair its user, item, version, probability and cold sides."""

    stamp: dict[str, Any]
    pairs: list[tuple[str, str, str, float, list[str]]]

    def response(self) -> PredictResponse:
        """The answer as it is described to callers."""
        names = ("user_id", "item_id", "model_version", "probability", "cold")
        pairs = [PredictedPair.model_validate(dict(zip(names, pair, strict=True))) for pair in self.pairs]
        return PredictResponse(**self.stamp, pairs=pairs)


class Ranker:
    """Answers requests with one model and one source of features."""

    def __init__(
        self,
        scorer: Scorer,
        features: OnlineFeatures,
        version: str,
        max_candidates: int,
        journal: PredictionLog | None = None,
    ) -> None:
        self.scorer, self.features, self.version, self.max_candidates = scorer, features, version, max_candidates
        self.journal = journal
        self.types = scorer.bundle.golden().schema
        self.manifest = scorer.bundle.manifest
        self.context = context_fields(scorer.bundle.spec)
        self.moment = bool(scorer.bundle.spec.moment)
        self.service = str(self.manifest["feature_service_hash"])
        vocabulary = scorer.bundle.vocabulary
        self.columns = {side: _of_side(vocabulary, side) for side in ("user", "item", "context")}
        features.want([*self.columns["user"], *self.columns["item"]])

    async def rank(
        self,
        user: str,
        items: Sequence[str],
        context: Row = NOTHING,
        top_k: int | None = None,
        request_id: str | None = None,
    ) -> Ranking:
        """A user's items by falling probability, the first `top_k` of them.

        Items whose rows are known to hold still are not gathered.

        Raises:
            RequestError: the context does not fit the model, or there are too many items.
        """
        self._check_count("item_ids", len(items))
        checked = self._checked(context)
        said = request_id or uuid4().hex
        parts = self.scorer.known(items, self.features.items.clock(), self.features.items.epoch)
        rows = {key: self.scorer.row(key) for key in items} if parts is not None and self._logs(said) else {}
        gathered = await self.features.gather([user], items if parts is None else ())
        gathered.items.update(rows)
        begun = self._begun(said, gathered)
        context = {**checked, **self._of_moment(begun.at)}
        row = {**gathered.users[user], **context, USER_KEY: user, EVENT_TIMESTAMP: begun.at}
        if parts is None:
            call = partial(self.scorer.rank, row, items, gathered.items, gathered.until, gathered.epoch)
        else:
            call = partial(self.scorer.meet, row, parts)
        scores, cold = await _called(call, self.scorer.seconds(len(items), folds=True))
        self._log(begun, [user] * len(items), items, [context] * len(items), scores)
        ordered = _ordered(items, scores, cold, top_k)
        return Ranking(self._stamp(begun), self.scorer.cold("user", [user])[0], ordered)

    async def predict(
        self, users: Sequence[str], items: Sequence[str], contexts: Sequence[Row], request_id: str | None = None
    ) -> Predictions:
        """The click probability of each pair of a user and an item, in its context.

        Raises:
            RequestError: a context does not fit the model, or there are too many pairs.
        """
        self._check_count("pairs", len(users))
        checked = [self._checked(context) for context in contexts]
        begun = self._begun(request_id or uuid4().hex, await self.features.gather(users, items))
        moment = self._of_moment(begun.at)
        contexts = [{**context, **moment} for context in checked] if moment else checked
        columns = self._columns(begun, users, items, contexts)
        call = partial(self.scorer.probabilities, columns)
        scores = await _called(call, self.scorer.seconds(len(users), folds=False))
        self._log(begun, users, items, contexts, scores)
        sides = zip(self.scorer.cold("user", users), self.scorer.cold("item", items), strict=True)
        cold = [[side for side, is_cold in zip(("user", "item"), each, strict=True) if is_cold] for each in sides]
        versions = [self.version] * len(users)
        return Predictions(self._stamp(begun), list(zip(users, items, versions, scores.tolist(), cold, strict=True)))

    def describe(self) -> dict[str, Any]:
        """What is served."""
        said = ("name", "backbone", "arm", "run_id", "feature_service", "feature_service_hash", "spec_digest")
        return {"model_version": self.version, **{key: self.manifest.get(key) for key in said}, "context": self.context}

    def _begun(self, request_id: str, gathered: Gathered) -> _Begun:
        FEATURE_SECONDS.observe(gathered.seconds)
        for view, reason in gathered.degraded:
            DEGRADED_ANSWERS.labels(view, reason).inc()
        return _Begun(request_id, datetime.now(UTC), gathered)

    def _stamp(self, begun: _Begun) -> dict[str, Any]:
        """What every response says."""
        return {
            "request_id": begun.request_id,
            "model_version": self.version,
            "feature_service_hash": self.service,
            "degraded": told(begun.gathered.degraded),
        }

    def _columns(
        self, begun: _Begun, users: Sequence[str], items: Sequence[str], contexts: Sequence[Row]
    ) -> dict[str, list[Any]]:
        """Raw columns of n rows; a feature that its row lacks takes the model's default, one that is null does not."""
        at = [begun.at] * len(users)
        columns: dict[str, list[Any]] = {USER_KEY: list(users), ITEM_KEY: list(items), EVENT_TIMESTAMP: at}
        rows = {
            "user": [begun.gathered.users[key] for key in users],
            "item": [begun.gathered.items[key] for key in items],
            "context": contexts,
        }
        for side, names in self.columns.items():
            for name in names:
                default = self.scorer.defaults.get(name)
                columns[name] = [row.get(name, default) for row in rows[side]]
        return columns

    def _log(
        self, begun: _Begun, users: Sequence[str], items: Sequence[str], contexts: Sequence[Row], scores: Probabilities
    ) -> None:
        """Have the rows and their scores written aside, if this request is one of the sample."""
        if self.journal is None or not self._logs(begun.request_id):
            return
        columns = self._columns(begun, users, items, contexts)
        read = {name: columns[name] for name in self.scorer.bundle.vocabulary.columns}
        worse = [f"{view}:{reason}" for view, reason in sorted(begun.gathered.degraded)]
        stamp = begun.request_id, begun.at, self.version, self.service
        self.journal.add(Prediction(*stamp, users, items, scores, read, self.types, worse))

    def _logs(self, request_id: str) -> bool:
        return self.journal is not None and self.journal.wants(request_id)

    def _check_count(self, field: str, count: int) -> None:
        if count > self.max_candidates:
            raise RequestError(f"{field}: at most {self.max_candidates} are allowed, not {count}")

    def _of_moment(self, at: datetime) -> Row:
        """What the moment says, where the model reads it: by the function of the on-demand view."""
        if not self.moment:
            return NOTHING
        return {name: values[0] for name, values in request_context({EVENT_TIMESTAMP: [at]}).items()}

    def _checked(self, context: Mapping[str, Any]) -> Row:
        unknown = sorted(set(context) - set(self.context))
        if unknown:
            known = ", ".join(sorted(self.context)) or "none"
            raise RequestError(f"unknown context field '{unknown[0]}'; the model reads: {known}")
        for name, value in context.items():
            if not _fits(self.context[name], value):
                raise RequestError(f"context field '{name}' is of kind {self.context[name]}; got {value!r}")
        return {name: _spelled(self.context[name], context.get(name)) for name in self.context}


async def _called(call: Callable[[Any], Value], seconds: float) -> Value:
    """The model's answer. One that takes long is waited for beside the event loop, on which other requests go on.

    A call that nobody waits for any longer is stopped, so that it does not hold its thread and the processor.
    """
    with MODEL_SECONDS.time():
        if seconds <= LONG:
            return call(None)
        options = stoppable()
        try:
            return await asyncio.get_running_loop().run_in_executor(None, call, options)
        except asyncio.CancelledError:
            options.terminate = True
            CALLS_STOPPED.inc()
            raise


def _ordered(
    keys: Sequence[str], scores: Probabilities, cold: Flags, top_k: int | None
) -> list[tuple[str, float, bool]]:
    """Items by falling probability; equal ones keep the order in which they were asked."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    # Python's own numbers, all at once: NumPy's cost more to take out one by one than the model's call.
    places = order.tolist()
    return list(zip(map(keys.__getitem__, places), scores[order].tolist(), cold[order].tolist(), strict=True))


async def merged(
    rankers: Sequence[Ranker], users: Sequence[str], items: Sequence[str], contexts: Sequence[Row]
) -> Predictions:
    """The click probability of each pair, by the ranker that belongs to its user.

    Raises:
        RequestError: a context does not fit the model, or there are too many pairs.
    """
    request_id = uuid4().hex
    chosen = list(dict.fromkeys(rankers))
    if len(chosen) == 1:
        return await chosen[0].predict(users, items, contexts, request_id)
    pairs: dict[int, tuple[str, str, str, float, list[str]]] = {}
    answers: list[Predictions] = []
    for ranker in chosen:
        places = [place for place, of in enumerate(rankers) if of is ranker]
        mine = _at(places, users), _at(places, items), _at(places, contexts)
        answers.append(await ranker.predict(*mine, request_id))
        pairs |= dict(zip(places, answers[-1].pairs, strict=True))
    degraded: Counter[tuple[str, str]] = Counter()
    for worse in (worse for answer in answers for worse in answer.stamp["degraded"]):
        degraded[worse.view, worse.reason] += worse.keys
    stamp = {**answers[0].stamp, "degraded": told(degraded)}
    return Predictions(stamp, [pairs[place] for place in range(len(rankers))])


def _at(places: Sequence[int], values: Sequence[Value]) -> list[Value]:
    return [values[place] for place in places]


def told(degraded: Counter[tuple[str, str]]) -> list[Degraded]:
    """What could not be used, as a response says it."""
    worse = sorted(degraded.items())
    return [Degraded.model_validate({"view": view, "reason": why, "keys": keys}) for (view, why), keys in worse]


def context_fields(spec: DatasetSpec) -> dict[str, str]:
    """The context fields that a request may carry, with their kinds."""
    computed = {field.name for field in spec.moment_fields()}
    return {field.name: field.kind.value for field in spec.model_fields_of("context") if field.name not in computed}


def _of_side(vocabulary: Vocabulary, side: str) -> tuple[str, ...]:
    """The model's raw columns that come from one side; histories are the user's, keys are nobody's."""
    of = {field.column: field.side for field in vocabulary.fields}
    return tuple(name for name in vocabulary.columns if name not in KEYS and of.get(name, "user") == side)


def _fits(kind: str, value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return False
    if kind == Kind.NUMBER:
        return isinstance(value, int | float)
    return isinstance(value, list) if kind == Kind.MULTI else isinstance(value, str | int)


def _spelled(kind: str, value: Any) -> Any:
    """The value as the validated tables spell it: categories are strings."""
    return str(value) if kind == Kind.CATEGORY and isinstance(value, int) else value
