"""The BentoML service: the collaborative model alone, from online features. Neither torch nor transformers."""

from __future__ import annotations

import os
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

from components.dataset.bundle import Bundle
from serving.errors import ErrorBodies
from serving.features import OnlineFeatures
from serving.ranker import ContextError, Ranker
from serving.schemas import PredictRequest, PredictResponse, RankRequest, RankResponse
from serving.scorer import Scorer


class BadRequestError(BentoMLException):
    """The request is well-formed but does not fit the model."""

    error_code = HTTPStatus.UNPROCESSABLE_ENTITY


def _ranker() -> Ranker:
    """The ranker of the model that TANDEM_MODEL names in the model store, with the features of TANDEM_FEATURE_STORE."""
    model = bentoml.models.get(os.environ["TANDEM_MODEL"])
    bundle = Bundle.open(Path(model.path))
    config = Path(os.environ["TANDEM_FEATURE_STORE"])
    features = OnlineFeatures(config, str(bundle.manifest["feature_service"]))
    return Ranker(Scorer(bundle), features, str(model.tag.version))


current: dict[str, Ranker] = {}


def _model(_: Request) -> Response:
    return JSONResponse(current["ranker"].describe())


pages = Starlette(routes=[Route("/model", _model, methods=["GET"])])


@bentoml.service(name="tandem", threads=4, traffic={"timeout": 10, "max_concurrency": 64})
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


@contextmanager
def _refusals() -> Iterator[None]:
    """Answer 422 where a request does not fit the model."""
    try:
        yield
    except ContextError as error:
        raise BadRequestError(str(error)) from None
