"""The model that answered, fetched from the registry again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from components.dataset.bundle import Bundle
from components.registry.client import BUNDLE, fetch, version_of


@contextmanager
def bundle_of(dataset: str, version: str) -> Iterator[Bundle]:
    """The bundle of a registered version, in a folder that lasts as long as the context.

    Args:
        dataset: Name of a data set, or path of its DatasetSpec.
        version: The version's number.

    Raises:
        UserError: the registry has no such version.
    """
    with TemporaryDirectory(prefix="tandem-monitor-") as folder:
        yield Bundle.open(fetch(version_of(dataset, version), Path(folder) / BUNDLE))
