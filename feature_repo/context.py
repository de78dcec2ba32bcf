"""Request-time context as a Feast on-demand view whose function the registry knows by its name alone.

Feast writes the function of an on-demand view into its registry as a pickle and as source, and whoever reads the view
runs them. This registry holds neither: in place of the source stands the import of a function of this project, which a
reader has or has not, and no pickle. A registry that holds anything else is refused before Feast reads a view of it
(`refuse_code`), and the service reads definitions alone, without functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, cast

from components.dataset.errors import UserError
from components.dataset.lean import lean
from components.dataset.moment import CYCLES, request_context
from components.dataset.spec import EVENT_TIMESTAMP, MOMENT_PREFIX, DatasetSpec
from feature_repo.asof import quoted

with lean():
    from feast import Field, RequestSource
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.protos.feast.core.Transformation_pb2 import UserDefinedFunctionV2
    from feast.transformation.python_transformation import PythonTransformation
    from feast.types import String, UnixTimestamp

# Feast warns of views that it computes itself, in memory; the offline stores compute this one in SQL.
warnings.filterwarnings("ignore", "On demand feature view is an experimental feature", RuntimeWarning)

CONTEXT_VIEW = "request_context"
#: What stands in the registry where Feast puts a function's source.
IMPORT = f"from {request_context.__module__} import {request_context.__name__}"


#: Feast's messages for them.
FUNCTIONS = frozenset({"UserDefinedFunction", "UserDefinedFunctionV2", "SubstraitTransformationV2"})
_BY_NAME = UserDefinedFunctionV2(name=request_context.__name__, body_text=IMPORT, mode="python")


class _Named(PythonTransformation):
    """`request_context`, of which the registry keeps the name."""

    def to_proto(self) -> UserDefinedFunctionV2:
        return _BY_NAME

    def __deepcopy__(self, memo: Any = None) -> _Named:
        return self  # Feast's copy would be one that pickles


def context_view(spec: DatasetSpec) -> Any:
    """The on-demand view of what `moment` asks for: from the moment of each request, as a category each.

    Its tags hold the formulas, so that the digest of the feature service covers what the values mean.
    """
    formulas = {MOMENT_PREFIX + part: CYCLES[part].sql("microseconds") for part in spec.moment}
    return OnDemandFeatureView(
        name=CONTEXT_VIEW,
        sources=[RequestSource(name="request", schema=[Field(name=EVENT_TIMESTAMP, dtype=UnixTimestamp)])],
        schema=[Field(name=name, dtype=String) for name in formulas],
        feature_transformation=_Named(cast(FunctionType, request_context), IMPORT),
        mode="python",
        tags=formulas,
    )


def context_columns(names: list[str], prefix: str = "") -> list[str]:
    """SQL of some of the view's features, from the column `event_timestamp`: the same values as the function's."""
    microseconds = f"epoch_us({quoted(EVENT_TIMESTAMP)})"
    cycles = {name: CYCLES[name.removeprefix(MOMENT_PREFIX)] for name in names}
    return [f"({cycle.sql(microseconds)})::VARCHAR AS {quoted(prefix + name)}" for name, cycle in cycles.items()]


def on_demand_views(store: Any) -> list[Any]:
    """The on-demand views of a store's project, without their functions."""
    return list(store.registry.list_on_demand_feature_views(store.project, allow_cache=True, skip_udf=True))


def refuse_code(store: Any) -> None:
    """See that the views of this project hold no function but `request_context`, by its name.

    Raises:
        UserError: one holds a pickle, or source, that Feast would run.
    """
    registry = store.registry.proto()
    for view in (*registry.feature_views, *registry.stream_feature_views, *registry.on_demand_feature_views):
        if view.spec.project == store.project and any(one != _BY_NAME for one in _functions(view.spec)):
            raise UserError(
                f"feature registry of {store.project}: view '{view.spec.name}' holds code, and Tandem writes none; "
                "find out who wrote it, and remove the view before anything reads it"
            )


def _functions(message: Any) -> Iterator[Any]:
    """Every function that a message of the registry holds, however deep."""
    for field, value in message.ListFields():
        for part in value if isinstance(value, Sequence) else [value]:
            if field.message_type is not None and field.message_type.name in FUNCTIONS:
                yield part
            elif hasattr(part, "ListFields"):
                yield from _functions(part)
