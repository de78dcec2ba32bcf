"""How an expectation is made: its severity, and what it expects in words."""

from __future__ import annotations

from typing import Any

from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from components.validate.settings import Severity


def expect(name: str, severity: Severity, words: str, **arguments: Any) -> Expectation:
    """One of the package's expectations by name, its severity, and what it expects in words."""
    make: type[Expectation] = getattr(gxe, name)
    # The Data Docs show the description and not the severity.
    description = f"{words} [{severity}]"
    return make(severity=FailureSeverity(severity), description=description, meta={"words": words}, **arguments)
