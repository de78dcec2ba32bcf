"""Feast, imported without what costs most of the time: its checks of types, and torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def lean() -> Iterator[None]:
    """Import Feast within: in 1.3 s instead of 6.

    typeguard compiles each of its classes anew, for checks of what is given to definitions; ours come from a spec that
    has been validated. And it imports torch wherever it finds it, for conversions that nobody here asks for.
    """
    with _unchecked(), _absent("torch"):
        yield


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """Let imports believe that a package is not installed, if nobody has imported it yet."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the import system's own mark for "not there"
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def _unchecked() -> Iterator[None]:
    """Let classes that ask for typeguard's checks be as they are written."""
    import typeguard

    def unchanged(target: Any = None, **_: Any) -> Any:
        return (lambda made: made) if target is None else target

    checked = typeguard.typechecked
    typeguard.typechecked = unchanged
    try:
        yield
    finally:
        typeguard.typechecked = checked
