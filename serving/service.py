"""The BentoML service: the collaborative model alone, from online features. Neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from threading import Lock

import bentoml
from bentoml.exceptions import BentoMLException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from components.dataset.bundle import Bundle, BundleError
from components.dataset.errors import UserError
from serving.door import RETRY_AFTER, Door
from serving.errors import ErrorBodies
from serving.express import PREDICT, RANK, Express
from serving.features import OnlineFeatures
from serving.journal import FeedbackLog, PredictionLog
from serving.logs import log_json
from serving.metrics import (
    ANSWERS,
    BREAKER_OPEN,
    CANDIDATES,
    DATA_AGE,
    FEATURES_MATCH,
    FEEDBACK,
    ITEM_AGE,
    ITEMS,
    MODEL,
    PART_SECONDS,
    REFUSED,
)
from serving.online import OnlineStore, Row
from serving.promotion import Fixed, Mirror, NoModelError, Promotion
from serving.ranker import Predictions, Ranker, Ranking, RequestError, merged
from serving.schemas import (
    FeedbackRequest,
    FeedbackResponse,
    PredictRequest,
    PredictResponse,
    RankRequest,
    RankResponse,
)
from serving.scorer import Scorer
from serving.settings import PREFIX, ServeSettings


class BadRequestError(BentoMLException):
    """The request is well-formed but does not fit the model."""

    error_code = HTTPStatus.UNPROCESSABLE_ENTITY


class UnavailableError(BentoMLException):
    """There is no model yet, or no disk to write to."""

    error_code = HTTPStatus.SERVICE_UNAVAILABLE


class Loader:
    """Makes rankers that share one source of features."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.features: OnlineFeatures | None = None
        self.journal: PredictionLog | None = None
        if settings.log is not None and settings.log_share > 0:
            kept = settings.log_seconds, settings.log_megabytes
            self.journal = PredictionLog(settings.log, settings.log_share, *kept)
        self._lock = Lock()

    def __call__(self, path: Path, version: str) -> Ranker:
        """The ranker of a bundle, after its files, its golden rows and its features are checked.

        Raises:
            BundleError: the model is not what was registered, or its features are not those of the store.
        """
        bundle = Bundle.open(path)
        scorer = Scorer(bundle)
        features = self._features(str(bundle.manifest["feature_service"]))
        expected = bundle.manifest["feature_service_hash"]
        if features.registered.digest != expected:
            features.look_at_registry()
        if features.registered.digest != expected:
            found = features.registered.digest
            raise BundleError(f"{path}: trained on feature service {expected}, but the store has {found}")
        return Ranker(scorer, features, version, self.settings.max_candidates, self.journal)

    def _features(self, service: str) -> OnlineFeatures:
        with self._lock:
            if self.features is None:
                store = OnlineStore(self.settings.feature_store, service, self.settings.feature_deadline)
                self.features = OnlineFeatures(store, self.settings)
                self.features.start()
            return self.features


def _source(settings: ServeSettings) -> Mirror | Fixed:
    if settings.models is not None:
        return Mirror(settings.models, settings.version)
    if settings.model is None:
        raise UserError(f"neither {PREFIX}MODELS nor {PREFIX}MODEL is set; start the service with `tandem serve`")
    return Fixed(Path(bentoml.models.get(settings.model).path))


settings = ServeSettings.read()
current: dict[str, Promotion] = {}


def _model(_: Request) -> Response:
    try:
        return JSONResponse(current["promotion"].describe())
    except NoModelError as error:
        return JSONResponse({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER)


pages = Starlette(routes=[Route("/model", _model, methods=["GET"])])


# The door ends requests after `timeout`, and their work with them; BentoML's own limit must not come before it.
# Requests are counted and timed as metrics; a line in the log and a span for each cost a fifth of the core.
@bentoml.service(
    name="tandem",
    threads=settings.threads,
    traffic={"timeout": 2 * settings.timeout},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [RANK, PREDICT]},
)
@bentoml.asgi_app(pages, path="/")
class Tandem:
    """Ranks items for a user by click probability."""

    def __init__(self) -> None:
        log_json()
        self.told: set[tuple[str, str]] = set()
        self.loader = Loader(settings)
        self.feedback_log = None if settings.log is None else FeedbackLog(settings.log, settings.log_megabytes)
        self.promotion = Promotion(_source(settings), self.loader, settings.canary, after=self.measure)
        current["promotion"] = self.promotion
        self.promotion.start(settings.poll)

    def measure(self) -> None:
        """Tell Prometheus what holds now."""
        serving = set(self.promotion.versions().items())
        for alias, version in self.told - serving:
            MODEL.labels(alias, version).set(0)
        for alias, version in serving:
            MODEL.labels(alias, version).set(1)
        self.told |= serving
        REFUSED.set(len(self.promotion.refused))
        features, lineup = self.loader.features, self.promotion.lineup
        if features is not None and lineup is not None:
            hashed = lineup.champion.manifest["feature_service_hash"]
            FEATURES_MATCH.set(features.registered.digest == hashed)
            BREAKER_OPEN.set(features.breaker.open)
            ITEMS.set(len(features.items))
            ITEM_AGE.set(features.items.oldest())
            for view, age in features.data_age().items():
                DATA_AGE.labels(view).set(age)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def close(self) -> None:
        """Write down what is waiting to be."""
        self.promotion.stop()
        if self.loader.features is not None:
            self.loader.features.stop()
        if self.loader.journal is not None:
            self.loader.journal.stop()

    async def __is_ready__(self) -> bool:
        """Ready once a model is loaded, and so verified against its digests, golden rows and features."""
        return self.promotion.lineup is not None

    @bentoml.api(route=RANK)  # type: ignore[untyped-decorator]
    async def rank(self, request: RankRequest, /) -> RankResponse:
        """Rank a user's candidate items by click probability."""
        return (await _rank(request.user_id, request.item_ids, request.context, request.top_k)).response()

    @bentoml.api(route=PREDICT)  # type: ignore[untyped-decorator]
    async def predict(self, request: PredictRequest, /) -> PredictResponse:
        """Give the click probability of explicit pairs of user and item."""
        pairs = request.pairs
        users, items = [pair.user_id for pair in pairs], [pair.item_id for pair in pairs]
        return (await _predict(users, items, [pair.context for pair in pairs])).response()

    @bentoml.api(route="/feedback")  # type: ignore[untyped-decorator]
    def feedback(self, request: FeedbackRequest, /) -> FeedbackResponse:
        """Record what became of items that were ranked or predicted."""
        with _refusals():
            if self.feedback_log is None:
                raise RequestError(f"feedback is not recorded here; set {PREFIX}LOG to a folder")
            now = datetime.now(UTC).isoformat()
            events = [{**event.model_dump(mode="json"), "received": now} for event in request.events]
            try:
                self.feedback_log.add([{**event, "at": event["at"] or now} for event in events])
            except OSError as error:
                raise UnavailableError("the events cannot be written down") from error
            for event in request.events:
                FEEDBACK.labels(str(event.clicked).lower()).inc()
            return FeedbackResponse(recorded=len(events))


@contextmanager
def _answering(endpoint: str, candidates: int) -> Iterator[None]:
    """Measure a request, and refuse it in the right words."""
    CANDIDATES.labels(endpoint).observe(candidates)
    with PART_SECONDS.labels("total").time(), _refusals():
        yield


@contextmanager
def _refusals() -> Iterator[None]:
    """Answer 422 where a request does not fit the model, 503 without a model."""
    try:
        yield
    except RequestError as error:
        raise BadRequestError(str(error)) from None
    except NoModelError as error:
        raise UnavailableError(str(error)) from None


async def _rank(user: str, items: Sequence[str], context: Row, top_k: int | None) -> Ranking:
    with _answering(RANK, len(items)):
        answer = await current["promotion"].current().of(user).rank(user, items, context, top_k)
        ANSWERS.labels(RANK, answer.stamp["model_version"]).inc()
        return answer


async def _predict(users: Sequence[str], items: Sequence[str], contexts: Sequence[Row]) -> Predictions:
    with _answering(PREDICT, len(users)):
        lineup = current["promotion"].current()
        answer = await merged([lineup.of(user) for user in users], users, items, contexts)
        for version in {version for _, _, version, _, _ in answer.pairs}:
            ANSWERS.labels(PREDICT, version).inc()
        return answer


Tandem.add_asgi_middleware(ErrorBodies)  # type: ignore[attr-defined]  # the decorator made it a bentoml.Service
Tandem.add_asgi_middleware(Door, settings=settings)  # type: ignore[attr-defined]
Tandem.add_asgi_middleware(Express, rank=_rank, predict=_predict)  # type: ignore[attr-defined]
