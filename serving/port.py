"""A port that several processes listen on, each with a socket of its own.

Where workers accept from one socket, the first one to wake takes every connection that waits, and those that are kept
stay with it: of two workers one then answers everything.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any


class SharedPort(socket.socket):
    """A port that no one else has; each process that this is sent to gets a socket of its own on it.

    The kernel spreads connections over the sockets that listen there, and a process that dies takes its own along.
    """

    def __reduce__(self) -> tuple[Callable[[str, int], SharedPort], tuple[str, int]]:
        host, port, *_ = self.getsockname()
        return SharedPort.of, (host, port)

    @classmethod
    def of(cls, host: str, port: int, *, listens: bool = True) -> SharedPort:
        """A socket on it, to listen with or to keep it by.

        Raises:
            OSError: the address is not this machine's, or somebody else has it.
        """
        *kind, address = _resolved(host, port)
        found = cls(*kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections that have ended hold the port for a minute against whoever comes next, unless they had this. One
        # that does not listen would let others in by it.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, listens)
        found.bind(address)
        return found


def reserved(host: str, port: int) -> SharedPort:
    """A port to share, once it is known to be free: two services on one port would answer each other's callers.

    Raises:
        OSError: the address is not this machine's, or somebody else has it.
    """
    *kind, address = _resolved(host, port)
    with socket.socket(*kind) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
    return SharedPort.of(host, port, listens=False)


def _resolved(host: str, port: int) -> tuple[int, int, int, Any]:
    """Family, type and protocol of a socket for an address, and the address in its words."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, kind, protocol, address
