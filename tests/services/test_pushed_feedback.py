"""Feedback becomes history: what callers report is in the next read of a real Redis, once, and nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

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

    (file, *_) = sorted((tmp_path / "log" / "feedback").glob("*.jsonl"))
    file.write_text(json.dumps(reported("a", 30)) + "\n")
    assert pusher.look() == 1, "a file that was removed and begun anew is read from its beginning"
    assert read("a")["item_id"] == ["c", "c", "a"]


WRITERS = """
import os
from feature_repo import store
from feature_repo.live import Event, push_events
from feature_repo.materialise import materialise
from tests.feature_repo import logs
from tests.services.test_pushed_feedback import CROWDED, EACH, USERS

spec = logs.make_spec(history=CROWDED)

def work(part):
    opened = store.open_store(spec)
    if part == 2:
        for _ in range(3):
            materialise(opened, spec, full=True)
        return
    for number in range(EACH):
        said = {"item_id": "b", "label": number % 2, "event_timestamp": logs.moment(10 + 2 * number + part)}
        assert push_events(opened, spec, [Event(user_id=user, **said) for user in USERS]) == len(USERS)

# Feast is imported once, and each of the three processes has a store of its own.
children = []
for part in range(3):
    if (child := os.fork()) == 0:
        work(part)
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""
CROWDED, USERS, EACH = {"length": 200}, ("a", "b"), 15


@pytest.mark.parametrize("online", ["redis", "sqlite"])
def test_writers_at_once_neither_lose_nor_double_an_event(online, request, tmp_path, monkeypatch):
    """Two that push events of the same users, one of whose events always lie between the other's, and a materialise."""
    if online == "redis":
        monkeypatch.setenv("TANDEM_FEAST", str(online_in(request.getfixturevalue("redis"), tmp_path)))
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    spec = logs.make_spec(history=CROWDED)
    rows = logs.impression_table([("a", "a", 1, 1), ("b", "a", 2, 0)])
    path = logs.write(tmp_path / "validated", spec, rows, *logs.one_row_tables())
    store = room.open_store(spec)
    room.apply(store, spec, path)
    logs.materialised(store, spec)
    command = [sys.executable, "-W", "ignore", "-c", WRITERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    found = room.online_rows(store, spec, "user", list(USERS))
    for place in range(len(USERS)):
        seconds = [1 + place, *range(10, 10 + 2 * EACH)]
        # Where the log says when it was known, an event that comes late is the last.
        moments = sorted(found["history_timestamp"][place])
        assert moments == [int(logs.moment(second).timestamp()) * 10**6 for second in seconds]


def test_without_a_history_there_is_nothing_to_push(opened, tmp_path):
    FeedbackLog(tmp_path / "log", megabytes=1).add([reported("b", 10)])
    with pytest.raises(UserError, match="no history"):
        Pusher(opened, logs.make_spec(), tmp_path / "log").look()
