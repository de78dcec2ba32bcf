"""Online features: the users' rows from Feast, the items' rows from a table in this process."""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from components.dataset.spec import ITEM_KEY, USER_KEY, DatasetSpec

ITEM_VIEW = "item_profile"
Row = Mapping[str, Any]


class OnlineFeatures:
    """Feature rows by key. A key that the online store does not know has None for every feature.

    Args:
        config: The feature_store.yaml of the data set's project.
        service: Name of the feature service that the model was trained on.
        ttl: Seconds after which an item's row is read again.
        capacity: Items kept at most; the one read longest ago goes first.
    """

    def __init__(self, config: Path, service: str, ttl: float = 300.0, capacity: int = 1_000_000) -> None:
        with _absent("torch"):
            from feast import FeatureStore

        self.store = FeatureStore(fs_yaml_file=config)
        self.ttl, self.capacity = ttl, capacity
        projections = self.store.get_feature_service(service).feature_view_projections
        self.user_features = _references(view for view in projections if view.name != ITEM_VIEW)
        self.item_features = _references(view for view in projections if view.name == ITEM_VIEW)
        self._items: OrderedDict[str, tuple[float, Row]] = OrderedDict()
        self._lock = Lock()

    def users(self, keys: Sequence[str]) -> list[Row]:
        """One row for each user, read from the online store now."""
        return self._read(USER_KEY, keys, self.user_features)

    def items(self, keys: Sequence[str]) -> list[Row]:
        """One row for each item, from this process's table where it is young enough."""
        oldest = time.monotonic() - self.ttl
        with self._lock:
            kept = {key: entry for key in keys if (entry := self._items.get(key)) and entry[0] > oldest}
        absent = [key for key in dict.fromkeys(keys) if key not in kept]
        if absent:
            now, rows = time.monotonic(), self._read(ITEM_KEY, absent, self.item_features)
            kept |= {key: (now, row) for key, row in zip(absent, rows, strict=True)}
            self._keep({key: kept[key] for key in absent})
        return [kept[key][1] for key in keys]

    def _keep(self, entries: Mapping[str, tuple[float, Row]]) -> None:
        with self._lock:
            for key, entry in entries.items():
                self._items[key] = entry
                self._items.move_to_end(key)
            while len(self._items) > self.capacity:
                self._items.popitem(last=False)

    def _read(self, key: str, keys: Sequence[str], features: list[str]) -> list[Row]:
        if not features:
            return [{} for _ in keys]
        answer = self.store.get_online_features(features=features, entity_rows=[{key: value} for value in keys])
        columns = answer.to_dict()
        names = [name for name in columns if name != key]
        return [{name: columns[name][number] for name in names} for number in range(len(keys))]


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """Let imports believe that a package is not installed.

    Feast imports torch wherever it finds it, for offline work; in a service it would cost seconds and 200 MB.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the import system's own mark for "not there"
    try:
        yield
    finally:
        del sys.modules[package]


def _references(projections: Any) -> list[str]:
    return [f"{view.name}:{feature.name}" for view in projections for feature in view.features]


def context_fields(spec: DatasetSpec) -> dict[str, str]:
    """The context fields that a request may carry, with their kinds."""
    return {field.name: field.kind.value for field in spec.model_fields_of("context")}
