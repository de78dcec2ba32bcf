"""A key's features from Redis in one round trip on the event loop: Feast's own keys and values, without its threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, cast

import hiredis

#: Connection settings that are understood here; with any other one (TLS, ...) Feast reads.
UNDERSTOOD = frozenset({"db", "username", "password", "socket_timeout", "socket_connect_timeout", "retry"})


class RedisLine:
    """One connection to a Redis, opened when it is first needed and again after it has been lost.

    Commands are sent as they come and answered in that order. It belongs to the event loop that first asks.
    """

    def __init__(self, host: str, port: int, settings: Mapping[str, Any]) -> None:
        self.host, self.port = host, port
        self._greeting: list[Sequence[Any]] = []
        if settings.get("password") is not None:
            name = [str(settings["username"])] if settings.get("username") is not None else []
            self._greeting.append(["AUTH", *name, str(settings["password"])])
        if settings.get("db"):
            self._greeting.append(["SELECT", str(settings["db"])])
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    async def ask(self, *words: bytes | str) -> Any:
        """The answer to a command.

        Raises:
            OSError: no connection, or it was lost before the answer came.
            hiredis.ReplyError: Redis refuses the command.
        """
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._open()
        return await connection.ask(words)

    def close(self) -> None:
        """Give the connection up: a peer that has gone without a word is not asked again."""
        if self._connection is not None:
            self._connection.close()

    async def _open(self) -> _Connection:
        async with self._opening:
            if self._connection is None or self._connection.lost:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, self.host, self.port)
                try:
                    for words in self._greeting:
                        await connection.ask(words)
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
            return self._connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = False
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.Transport | None = None

    def ask(self, words: Sequence[Any]) -> asyncio.Future[Any]:
        """The answer to come."""
        answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self.lost:
            answer.set_exception(ConnectionError("the connection is closed"))
            return answer
        self._waiting.append(answer)
        self._transport.write(hiredis.pack_command(tuple(words)))
        return answer

    def close(self) -> None:
        """Give the connection up; whoever waits is told."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # That of uvloop is none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand on every answer that is complete, those that nobody waits for any longer too."""
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            waiting = self._waiting.popleft()
            if waiting.done():
                continue
            if isinstance(answer, hiredis.HiredisError):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self.lost = True
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(error if isinstance(error, OSError) else ConnectionError("connection lost"))


class RedisRows:
    """One key's values in several views by one HMGET, packed and unpacked by Feast's own Redis store.

    Args:
        online: Feast's store.
        config: Feast's configuration.
        line: Where Redis is.
    """

    def __init__(self, online: Any, config: Any, line: RedisLine) -> None:
        self.online, self.config, self.line = online, config, line
        self._fields: dict[tuple[str, tuple[str, ...]], tuple[str, list[str], list[bytes]]] = {}

    @classmethod
    def of(cls, online: Any, config: Any) -> RedisRows | None:
        """For a store that is one plain Redis; None for any other."""
        from feast.infra.online_stores.redis import RedisOnlineStore, RedisType

        if not isinstance(online, RedisOnlineStore) or config.online_store.redis_type != RedisType.redis:
            return None
        nodes, settings = online._parse_connection_string(config.online_store.connection_string)
        if len(nodes) != 1 or not set(settings) <= UNDERSTOOD:
            return None
        return cls(online, config, RedisLine(nodes[0]["host"], int(nodes[0]["port"]), settings))

    async def read(self, views: Sequence[tuple[Any, tuple[str, ...]]], entity: Any) -> list[tuple[Any, Any]]:
        """Feast's moment and values of an entity key in each view, given as its definition and names of features.

        Raises:
            Exception: Redis cannot be asked.
        """
        planned = [self._planned(definition, names) for definition, names in views]
        (key,) = self.online._generate_redis_keys_for_entities(self.config, [entity])
        values = await self.line.ask("HMGET", key, *(field for _, _, fields in planned for field in fields))
        found, start = [], 0
        for name, names, fields in planned:
            part = values[start : start + len(fields)]
            found += self.online._convert_redis_values_to_protobuf([part], name, names)
            start += len(fields)
        return found

    def _planned(self, definition: Any, names: tuple[str, ...]) -> tuple[str, list[str], list[bytes]]:
        """A view's name in Redis, the names of its fields there, and the keys of these."""
        known = self._fields.get((definition.name, names))
        if known is None:
            from feast.infra.online_stores.redis import _versioned_fv_name

            name = _versioned_fv_name(definition, self.config)
            fields = self.online._generate_hset_keys_for_features(definition, list(names), fv_name_override=name)
            known = self._fields[definition.name, names] = name, *fields
        return known
