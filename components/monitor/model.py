"""The model that answered, fetched from the registry again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from components.dataset.bundle import Bundle
from components.dataset.spec import DatasetSpec
from components.registry.client import BUNDLE, fetch, version_of


@contextmanager
def bundle_of(spec: DatasetSpec, version: str) -> Iterator[Bundle]:
    """The bundle of a registered version, in a folder that lasts as long as the context.

    Raises:
        UserError: the registry has no such version.
    """
    with TemporaryDirectory(prefix="tandem-monitor-") as folder:
        yield Bundle.open(fetch(version_of(spec.name, version), Path(folder) / BUNDLE))
