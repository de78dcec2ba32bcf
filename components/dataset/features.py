"""What a feature service is, as one digest: computed where the definitions are made, and where they are served."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def features_digest(service: str, views: Iterable[Any]) -> str:
    """SHA-256 over what the features of Feast's views are and mean, and not over where they lie."""
    content = json.dumps({"service": service, "views": [_described(view) for view in views]}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_on_demand(view: Any) -> bool:
    """Whether Feast computes the view from a request, so that no store holds rows of it."""
    return hasattr(view, "source_request_sources")


def _described(view: Any) -> dict[str, Any]:
    if is_on_demand(view):
        return _described_on_demand(view)
    return {
        "name": view.name,
        "entities": list(view.entities),
        "features": [[field.name, str(field.dtype)] for field in view.features],
        "ttl": view.ttl.total_seconds(),
        "created": view.batch_source.created_timestamp_column,
        "tags": dict(view.tags),
    }


def _described_on_demand(view: Any) -> dict[str, Any]:
    return {
        "name": view.name,
        "request": sorted(view.get_request_data_schema()),
        "features": [[field.name, str(field.dtype)] for field in view.features],
        "tags": dict(view.tags),
    }
