"""The BentoML service: the collaborative model alone, from online features. Neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from components.dataset.bundle import Bundle, BundleError
from components.dataset.errors import UserError
from serving.door import Door, LateError, check_waited
from serving.errors import ErrorBodies
from serving.features import OnlineFeatures
from serving.online import OnlineStore
from serving.ranker import Ranker, RequestError
from serving.schemas import PredictRequest, PredictResponse, RankRequest, RankResponse
from serving.scorer import Scorer
from serving.settings import PREFIX, ServeSettings


class BadRequestError(BentoMLException):
    """The request is well-formed but does not fit the model."""

    error_code = HTTPStatus.UNPROCESSABLE_ENTITY


class TooLateError(BentoMLException):
    """The request waited too long to be worth answering."""

    error_code = HTTPStatus.GATEWAY_TIMEOUT


settings = ServeSettings.read()


def _ranker() -> Ranker:
    """The ranker of the model that the settings name.

    Raises:
        BundleError: the model is not what was registered, or its features are not those of the store.
    """
    if settings.model is None:
        raise UserError(f"{PREFIX}MODEL is not set")
    model = bentoml.models.get(settings.model)
    bundle = Bundle.open(Path(model.path))
    store = OnlineStore(settings.feature_store, str(bundle.manifest["feature_service"]), settings.feature_deadline)
    features = OnlineFeatures(store, settings)
    if features.registered.digest != bundle.manifest["feature_service_hash"]:
        raise BundleError(f"{bundle.path}: the feature service is not the one that the model was trained on")
    ranker = Ranker(Scorer(bundle), features, str(model.tag.version), settings.max_candidates)
    features.start()
    return ranker


current: dict[str, Ranker] = {}


def _model(_: Request) -> Response:
    return JSONResponse(current["ranker"].describe())


pages = Starlette(routes=[Route("/model", _model, methods=["GET"])])


# A request that is never begun is refused after `timeout`; one that is begun is done in a small part of it.
@bentoml.service(name="tandem", threads=settings.threads, traffic={"timeout": 2 * settings.timeout})
@bentoml.asgi_app(pages, path="/")
class Tandem:
    """Ranks items for a user by click probability."""

    def __init__(self) -> None:
        self.ranker = current["ranker"] = _ranker()

    async def __is_ready__(self) -> bool:
        """Ready once the bundle is verified and its golden rows are re-scored: the constructor does both."""
        return "ranker" in current

    @bentoml.api(route="/rank")  # type: ignore[untyped-decorator]
    def rank(self, request: RankRequest, /) -> RankResponse:
        """Rank a user's candidate items by click probability."""
        with _refusals():
            return self.ranker.rank(request)

    @bentoml.api(route="/predict")  # type: ignore[untyped-decorator]
    def predict(self, request: PredictRequest, /) -> PredictResponse:
        """Give the click probability of explicit pairs of user and item."""
        with _refusals():
            return self.ranker.predict(request)


Tandem.add_asgi_middleware(ErrorBodies)  # type: ignore[attr-defined]  # the decorator made it a bentoml.Service
Tandem.add_asgi_middleware(Door, settings=settings)  # type: ignore[attr-defined]


@contextmanager
def _refusals() -> Iterator[None]:
    """Answer 422 where a request does not fit the model, and 504 where it is too late to begin."""
    try:
        check_waited(settings.timeout)
        yield
    except RequestError as error:
        raise BadRequestError(str(error)) from None
    except LateError as error:
        raise TooLateError(str(error)) from None
