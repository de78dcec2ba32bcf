"""Feedback becomes history: what callers report is in the next read of a real Redis, once, and nothing is lost."""

from __future__ import annotations

import signal

import pytest

from components.dataset.errors import UserError
from components.monitor.pushing import CURSOR, Pusher
from feature_repo import store as room
from serving.journal import FeedbackLog
from serving.online import OnlineStore
from tests.feature_repo import logs
from tests.services.servers import lasting_redis, online_in

pytestmark = pytest.mark.services
HISTORY = {"length": 3, "fields": ["genres", "price"], "behaviour": ["page"]}


@pytest.fixture
def redis(tmp_path):
    with lasting_redis(tmp_path) as started:
        yield started


@pytest.fixture
def spec():
    return logs.make_spec(history=HISTORY)


@pytest.fixture
def opened(redis, spec, tmp_path, monkeypatch):
    monkeypatch.setenv("TANDEM_FEAST", str(online_in(redis, tmp_path)))
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    rows = logs.impression_table([("a", "a", 1, 1), ("b", "a", 2, 0)])
    path = logs.write(tmp_path / "validated", spec, rows, *logs.one_row_tables())
    found = room.open_store(spec)
    room.apply(found, spec, path)
    logs.materialised(found, spec)
    return found


def reported(item, second, user="a", clicked=True):
    said = {"request_id": "0" * 32, "item_id": item, "clicked": clicked, "at": logs.moment(second).isoformat()}
    return {**said, "user_id": user, "context": {"page": "p"}}


def test_what_is_reported_is_in_the_next_read(opened, spec, redis, tmp_path):
    source = OnlineStore(tmp_path / "home" / "feast" / f"{spec.identifier}.yaml", f"ctr_{spec.identifier}", 5)
    views = [view for view in source.registered().views if view.name == "user_history"]

    def read(user):
        (stored,) = source.read(views[0], [user])
        return {name: stored.row[f"history_{name}"] for name in ("item_id", "label", "page")}

    log = FeedbackLog(tmp_path / "log", megabytes=1, rows_per_file=2)
    pusher = Pusher(opened, spec, tmp_path / "log")
    assert pusher.look() == 0
    log.add([reported("b", 10), reported("c", 11, clicked=False), reported("b", 12, user=None)])
    assert pusher.look() == 1
    assert read("a") == {"item_id": ["a", "b", "c"], "label": [1, 1, 0], "page": ["page1", "p", "p"]}
    assert read("b")["item_id"] == ["a"]
    assert pusher.look() == 0

    redis.send(signal.SIGKILL)
    log.add([reported("c", 20), reported("a", 21, user="b")])
    with pytest.raises(Exception, match=r"[Cc]onnect"):
        pusher.look()
    redis.start()
    with next((tmp_path / "log" / "feedback").glob("*.jsonl")).open("a") as torn:
        torn.write('{"request_id": "00')
    assert Pusher(opened, spec, tmp_path / "log").look() == 2, "another process begins where this one fell"
    assert read("a")["item_id"] == ["b", "c", "c"]
    assert read("b")["item_id"] == ["a", "a"]

    (tmp_path / "log" / CURSOR).unlink()
    assert pusher.look() == 0, "an event that is pushed again changes nothing"
    assert read("a")["item_id"] == ["b", "c", "c"]


def test_without_a_history_there_is_nothing_to_push(opened, tmp_path):
    FeedbackLog(tmp_path / "log", megabytes=1).add([reported("b", 10)])
    with pytest.raises(UserError, match="no history"):
        Pusher(opened, logs.make_spec(), tmp_path / "log").look()
