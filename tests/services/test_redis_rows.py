"""Rows by one round trip of our own are the rows that Feast reads, on a real Redis."""

from __future__ import annotations

import asyncio
import signal

import pytest
import uvloop

from feature_repo import store as room
from feature_repo.materialise import materialise
from serving.direct import RedisRows
from serving.online import OnlineStore
from tests.feature_repo import logs
from tests.services.servers import lasting_redis, online_in
from tests.serving.test_skew import impressions, profiles

pytestmark = pytest.mark.services
PASSWORD = "secret-of-redis"
COUNT = 1000


@pytest.fixture
def redis(tmp_path):
    with lasting_redis(tmp_path, PASSWORD) as started:
        yield started


@pytest.fixture
def source(redis, tmp_path, monkeypatch):
    """A thousand users' profiles and histories in a Redis with a password and a database of its own."""
    monkeypatch.setenv("TANDEM_FEAST", str(online_in(redis, tmp_path, f",password={PASSWORD},db=3")))
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    users, items = [f"u{n}" for n in range(COUNT)], [f"i{n}" for n in range(COUNT)]
    spec = logs.make_spec(history={"length": 3, "fields": ["genres", "price"]})
    path = logs.write(tmp_path / "validated", spec, impressions(users, items), *profiles(users, items))
    opened = room.open_store(spec)
    room.apply(opened, spec, path)
    materialise(opened, spec)
    return OnlineStore(tmp_path / "home" / "feast" / f"{spec.identifier}.yaml", f"ctr_{spec.identifier}", 5)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_our_round_trip_reads_what_feast_reads_and_survives_a_restart(source, redis, run):
    views = {side: [view for view in source.registered().views if view.side == side] for side in ("user", "item")}
    assert source.direct
    assert [view.name for view in views["user"]] == ["user_profile", "user_history"]
    keys = {side: [*(f"{side[0]}{n}" for n in range(COUNT)), "nobody", "zoë \x00 😀", ""] for side in views}
    # NaN is NaN, -0.0 is no 0.0.
    expected = {side: [list(map(repr, source.read(view, keys[side]))) for view in views[side]] for side in views}

    async def read_as_expected(side: str, begin: int, end: int) -> list[str]:
        found = await source.read_soon(views[side], keys[side][begin:end])
        assert [list(map(repr, rows)) for rows in found] == [rows[begin:end] for rows in expected[side]]
        return [row for rows in expected[side] for row in rows[begin:end]]

    async def read() -> None:
        # All at once, and many requests of one key beside them, on the same connection.
        spans = [("user", 0, COUNT + 3), ("item", 0, COUNT + 3), *(("user", n, n + 1) for n in range(COUNT + 3))]
        found = await asyncio.gather(*(read_as_expected(*span) for span in spans))
        assert sum(row == "None" for row in found[0]) > 10
        redis.send(signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(OSError):
                await source.read_soon(views["user"], keys["user"])
        redis.start()
        await read_as_expected("user", 0, COUNT)
        redis.send(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(source.read_soon(views["user"], keys["user"]), 0.2)
            source.give_up()
        finally:
            redis.send(signal.SIGCONT)
        await asyncio.gather(*(read_as_expected("user", begin, begin + 2) for begin in (1, 2, 3)))

    run(read())


def test_a_wrong_password_is_an_error_and_other_connections_are_feasts(source):
    config = source._store.config
    wrong = RedisRows.of(source._online, config)
    wrong.line._greeting[0] = ("AUTH", "wrong")
    with pytest.raises(Exception, match="WRONGPASS"):
        asyncio.run(wrong.line.ask([("PING",)]))
    for more in (",ssl=true", ",unix_socket_path=x"):
        config.online_store.connection_string = f"127.0.0.1:1{more}"
        assert RedisRows.of(source._online, config) is None
