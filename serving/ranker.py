"""Ranking: a request's rows are gathered, scored in one call, and put in order. No HTTP here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from components.dataset.spec import ITEM_KEY, USER_KEY, Kind
from serving.features import OnlineFeatures, Row, context_fields
from serving.schemas import (
    PredictedPair,
    PredictRequest,
    PredictResponse,
    RankedItem,
    RankRequest,
    RankResponse,
)
from serving.scorer import Scorer


class ContextError(ValueError):
    """The request's context names a field that the model has not, or gives it a value of another type."""


class Ranker:
    """Answers requests with one model and one source of features."""

    def __init__(self, scorer: Scorer, features: OnlineFeatures, version: str) -> None:
        self.scorer, self.features, self.version = scorer, features, version
        self.manifest = scorer.bundle.manifest
        self.context = context_fields(scorer.bundle.spec)
        self.columns = scorer.bundle.vocabulary.columns

    def rank(self, request: RankRequest) -> RankResponse:
        """The request's items by falling probability.

        Raises:
            ContextError: the context does not fit the model.
        """
        count = len(request.item_ids)
        user = self.features.users([request.user_id])[0]
        rows = self.features.items(request.item_ids)
        context = self._checked(request.context)
        scores = self._score([request.user_id] * count, [user] * count, request.item_ids, rows, [context] * count)
        order = np.argsort(-scores, kind="stable")[: request.top_k]
        cold = self.scorer.cold("item", request.item_ids)
        items = [
            RankedItem(item_id=request.item_ids[place], probability=float(scores[place]), cold=cold[place])
            for place in order
        ]
        return RankResponse(**self._stamp(), user_cold=self.scorer.cold("user", [request.user_id])[0], items=items)

    def predict(self, request: PredictRequest) -> PredictResponse:
        """The click probability of each pair.

        Raises:
            ContextError: a context does not fit the model.
        """
        users, items = [pair.user_id for pair in request.pairs], [pair.item_id for pair in request.pairs]
        contexts = [self._checked(pair.context) for pair in request.pairs]
        scores = self._score(users, self.features.users(users), items, self.features.items(items), contexts)
        cold = zip(self.scorer.cold("user", users), self.scorer.cold("item", items), strict=True)
        pairs = [
            PredictedPair(
                user_id=user,
                item_id=item,
                probability=float(score),
                cold=[side for side, is_cold in zip(("user", "item"), sides, strict=True) if is_cold],
            )
            for user, item, score, sides in zip(users, items, scores, cold, strict=True)
        ]
        return PredictResponse(**self._stamp(), pairs=pairs)

    def describe(self) -> dict[str, Any]:
        """What is served."""
        said = ("name", "backbone", "arm", "run_id", "feature_service", "feature_service_hash", "spec_digest")
        return {"model_version": self.version, **{key: self.manifest.get(key) for key in said}, "context": self.context}

    def _stamp(self) -> dict[str, str]:
        return {
            "request_id": uuid4().hex,
            "model_version": self.version,
            "feature_service_hash": str(self.manifest["feature_service_hash"]),
        }

    def _score(
        self,
        users: Sequence[str],
        user_rows: Sequence[Row],
        items: Sequence[str],
        item_rows: Sequence[Row],
        contexts: Sequence[Row],
    ) -> npt.NDArray[np.float32]:
        columns: dict[str, list[Any]] = {USER_KEY: list(users), ITEM_KEY: list(items)}
        for name in self.columns:
            if name not in columns:
                sides = zip(user_rows, item_rows, contexts, strict=True)
                columns[name] = [next((row[name] for row in rows if name in row), None) for rows in sides]
        return self.scorer.probabilities(columns)

    def _checked(self, context: Mapping[str, Any]) -> Row:
        unknown = sorted(set(context) - set(self.context))
        if unknown:
            known = ", ".join(sorted(self.context)) or "none"
            raise ContextError(f"unknown context field '{unknown[0]}'; the model reads: {known}")
        for name, value in context.items():
            if not _fits(self.context[name], value):
                raise ContextError(f"context field '{name}' is of kind {self.context[name]}; got {value!r}")
        return {name: _spelled(self.context[name], context.get(name)) for name in self.context}


def _fits(kind: str, value: Any) -> bool:
    if value is None:
        return True
    if kind == Kind.NUMBER:
        return isinstance(value, int | float)
    return isinstance(value, list) if kind == Kind.MULTI else isinstance(value, str | int)


def _spelled(kind: str, value: Any) -> Any:
    """The value as the validated tables spell it: categories are strings."""
    return str(value) if kind == Kind.CATEGORY and isinstance(value, int) else value
