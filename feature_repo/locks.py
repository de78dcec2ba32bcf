"""One writer at a time, on one machine or on many: neither Feast's registries nor its online stores see to it."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.dataset.errors import UserError


@contextmanager
def alone(registry: Any, what: str) -> Iterator[None]:
    """Wait until no other process holds the lock `what` of a registry, and hold it.

    Beside a file registry it is a lock on a file, in PostgreSQL an advisory lock of the session: both fall with the
    process that holds them.

    Raises:
        UserError: the registry is neither a file nor in PostgreSQL.
    """
    if registry.registry_type == "file":
        with file_lock(Path(registry.path).with_suffix(f".{what}.lock")):
            yield
        return
    if registry.registry_type != "sql" or not registry.path.startswith("postgresql"):
        raise UserError(f"registry_type '{registry.registry_type}': write 'file', or 'sql' with a PostgreSQL address")
    with _advisory_lock(registry.path, what):
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock on a file, which is made where there is none, and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def writing(store: Any) -> Iterator[None]:
    """Be the only one that reads rows of a project's online store and writes what it makes of them.

    No online store of Feast's has transactions over a read and a write. The lock is the registry's, which all writers
    of a project share, whatever the online store is.

    Raises:
        UserError: as `alone` does.
    """
    with alone(store.config.registry, f"online_{store.project}"):
        yield


@contextmanager
def _advisory_lock(address: str, what: str) -> Iterator[None]:
    from sqlalchemy import create_engine, text  # only a team's registry needs it
    from sqlalchemy.pool import NullPool

    key = int.from_bytes(hashlib.sha256(f"tandem feast {what}".encode()).digest()[:8], "big", signed=True)
    engine = create_engine(address, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        yield
