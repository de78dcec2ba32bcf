"""Keys' features from Redis in one round trip on the event loop: Feast's own keys and values, without its threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from struct import Struct
from typing import Any, cast

import hiredis

#: Connection settings that are understood here; with any other one (TLS, ...) Feast reads.
UNDERSTOOD = frozenset({"db", "username", "password", "socket_timeout", "socket_connect_timeout", "retry"})
#: Keys whose values are unpacked in one go; other requests have their turn in between.
CHUNK = 100
#: The longest packed value, in bytes, that is remembered, and how many are.
SHORT, REMEMBERED = 32, 10_000

#: How Feast writes the length of a key, in front of it.
LENGTH = Struct("<I")

Command = tuple[Any, ...]
#: A key's values in a view by name, and the Unix time in seconds of the event that they are from.
Read = tuple[dict[str, Any], float]


class RedisLine:
    """One connection to a Redis, opened when it is first needed and again after it has been lost.

    Commands are sent as they come and answered in that order. It belongs to the event loop that first asks.
    """

    def __init__(self, host: str, port: int, settings: Mapping[str, Any]) -> None:
        self.host, self.port = host, port
        self._greeting: list[Command] = []
        if settings.get("password") is not None:
            name = [str(settings["username"])] if settings.get("username") is not None else []
            self._greeting.append(("AUTH", *name, str(settings["password"])))
        if settings.get("db"):
            self._greeting.append(("SELECT", str(settings["db"])))
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to some commands, which are sent in one go.

        Raises:
            OSError: no connection, or it was lost before the answers came.
            hiredis.ReplyError: Redis refuses a command.
        """
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._open()
        return await connection.ask(commands)

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
                    if self._greeting:
                        await connection.ask(self._greeting)
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
            return self._connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = False
        self._reader = hiredis.Reader()
        self._waiting: deque[_Answers] = deque()
        self._transport: asyncio.Transport | None = None

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The answers to come."""
        answers = _Answers(len(commands))
        if self._transport is None or self.lost:
            answers.all.set_exception(ConnectionError("the connection is closed"))
            return answers.all
        packed = b"".join([hiredis.pack_command(words) for words in commands])
        self._waiting.append(answers)
        self._transport.write(packed)
        return answers.all

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
            if self._waiting[0].complete(answer):
                self._waiting.popleft()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self.lost = True
        while self._waiting:
            waiting = self._waiting.popleft().all
            if not waiting.done():
                waiting.set_exception(error if isinstance(error, OSError) else ConnectionError("connection lost"))


class _Answers:
    """What becomes of some commands that were sent in one go."""

    def __init__(self, count: int) -> None:
        self.all: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._count, self._come = count, list[Any]()

    def complete(self, answer: Any) -> bool:
        """Take the next answer; whether it was the last."""
        self._come.append(answer)
        if len(self._come) < self._count:
            return False
        if not self.all.done():
            refused = next((one for one in self._come if isinstance(one, hiredis.HiredisError)), None)
            if refused is None:
                self.all.set_result(self._come)
            else:
                self.all.set_exception(refused)
        return True


class _Remembered(dict[bytes, Any]):
    """What packed values are; of short ones that were met lately without unpacking them again."""

    def __init__(self, unpack: Callable[[bytes], Any]) -> None:
        super().__init__()
        self.unpack = unpack

    def __missing__(self, packed: bytes) -> Any:
        value = self.unpack(packed)
        # A list could be changed by whoever gets it.
        if len(packed) <= SHORT and not isinstance(value, list):
            if len(self) >= REMEMBERED:
                self.clear()
            self[packed] = value
        return value


class RedisRows:
    """Keys' values in several views by one HMGET each, under the keys of Feast's own Redis store.

    Args:
        online: Feast's store.
        config: Feast's configuration.
        line: Where Redis is.
    """

    def __init__(self, online: Any, config: Any, line: RedisLine) -> None:
        self.online, self.config, self.line = online, config, line
        self._values, self._moments = _Remembered(_unpack_value), _Remembered(_unpack_moment)
        self._fields: dict[tuple[str, tuple[str, ...]], list[bytes]] = {}

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

    async def read(
        self, views: Sequence[tuple[Any, tuple[str, ...]]], blank: Any, keys: Sequence[str]
    ) -> list[list[Read]]:
        """What each view has of each key.

        Args:
            views: Each as its definition and names of features; all have the same entity.
            blank: Feast's entity key for an empty string.
            keys: The keys.

        Raises:
            Exception: Redis cannot be asked.
        """
        fields = [self._fields_of(definition, names) for definition, names in views]
        asked = [field for each in fields for field in each]
        answers = await self.line.ask([("HMGET", place, *asked) for place in self._places(blank, keys)])
        found: list[list[Read]] = [[] for _ in views]
        for begin in range(0, len(answers), CHUNK):
            if begin:
                await asyncio.sleep(0)
            for answer in answers[begin : begin + CHUNK]:
                packed = iter(answer)
                for (_, names), read in zip(views, found, strict=True):
                    row = {name: self._values[next(packed) or b""] for name in names}
                    read.append((row, self._moments[next(packed) or b""]))
        return found

    def _places(self, blank: Any, keys: Sequence[str]) -> list[bytes]:
        """Where Feast keeps each key; to have it say so costs as much as all else that a key needs."""
        (empty,) = self.online._generate_redis_keys_for_entities(self.config, [blank])
        # Between the entity's name and the project there are the key's length, now 0, and nothing of the key.
        tail = self.config.project.encode()
        head = empty[: -len(tail) - LENGTH.size]
        return [head + LENGTH.pack(len(spelled)) + spelled + tail for spelled in map(str.encode, keys)]

    def _fields_of(self, definition: Any, names: tuple[str, ...]) -> list[bytes]:
        """Where a view's features are in a key's hash, and last the moment that they are from."""
        known = self._fields.get((definition.name, names))
        if known is None:
            from feast.infra.online_stores.redis import _versioned_fv_name

            name = _versioned_fv_name(definition, self.config)
            _, known = self.online._generate_hset_keys_for_features(definition, list(names), fv_name_override=name)
            self._fields[definition.name, names] = known
        return known


def plain(value: Any) -> Any:
    """One of Feast's values as Python's own; None for a null and for one that says nothing."""
    kind = None if value is None else value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    found = getattr(value, kind)
    return list(found.val) if kind.endswith("_list_val") else found


def _unpack_value(packed: bytes) -> Any:
    from feast.protos.feast.types.Value_pb2 import Value

    return plain(Value.FromString(packed))


def _unpack_moment(packed: bytes) -> float:
    """Seconds of Unix time, as Feast has them to the last bit: rounded to microseconds."""
    from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

    said = Timestamp.FromString(packed)
    return datetime.fromtimestamp(said.seconds + said.nanos / 1e9, UTC).timestamp()
