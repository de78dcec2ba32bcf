"""The service on a real Redis that hangs, dies and comes back under load: no 5xx, and no restart."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.pipelines.shop import ROOT
from tests.services.servers import LastingRedis, lasting_redis, online_in
from tests.serving.conftest import started

pytestmark = [pytest.mark.services, pytest.mark.slow]

DEADLINE = 0.25
ITEMS = ["s1", "s2", "s3"]
#: One user's items, and pairs of many users.
ASKED = (
    ("/rank", {"user_id": "c1", "item_ids": ITEMS}),
    ("/predict", {"pairs": [{"user_id": f"c{n}", "item_id": ITEMS[n % 3]} for n in range(50)]}),
)
FILL = """
import sys
from pathlib import Path
from components.dataset.catalog import load_spec
from feature_repo.materialise import materialise
from feature_repo.store import apply, open_store
spec = load_spec(sys.argv[1])
store = open_store(spec)
apply(store, spec, Path(sys.argv[2]))
materialise(store, spec)
"""


@pytest.fixture
def redis(tmp_path) -> Iterator[LastingRedis]:
    with lasting_redis(tmp_path) as started:
        yield started


@pytest.fixture
def service(shop, redis, tmp_path):
    """The service on features that were materialised into Redis."""
    environment = online_in(redis, tmp_path)
    home = tmp_path / "home"
    shutil.copytree(shop / "home/serving", home / "serving")
    (validated,) = shop.glob("home/runs/first/artifacts/*/validate/validated")
    own = {"TANDEM_FEAST": str(environment), "TANDEM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", FILL, str(shop / "shop.yaml"), str(validated)]
    subprocess.run(program, env={**os.environ, **own}, check=True, cwd=ROOT)
    settings = {"feature_deadline": DEADLINE, "item_age": 0.5, "breaker_pause": 0.5}
    with started(tmp_path, tmp_path / "log", **settings) as running:
        yield running


@contextmanager
def load(service, callers: int = 4) -> Iterator[tuple[Counter, list[float]]]:
    """Requests without a pause; what came back by path, status and degraded views, and the seconds of each."""
    seen: Counter = Counter()
    seconds: list[float] = []
    stop = threading.Event()

    def ask(path: str, content: object) -> None:
        while not stop.is_set():
            began = time.monotonic()
            answer = service.post(path, content)
            seconds.append(time.monotonic() - began)
            views = tuple(worse["view"] + ":" + worse["reason"] for worse in answer.json().get("degraded", ["refused"]))
            seen[path, answer.status_code, views] += 1

    threads = [threading.Thread(target=ask, args=ASKED[n % 2]) for n in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield seen, seconds
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def until(found, seconds=90):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


WHOLE, WITHOUT_USER = [{(path, 200, views) for path, _ in ASKED} for views in ((), ("user_profile:unreachable",))]


@pytest.mark.parametrize(("fall", "rise"), [(signal.SIGKILL, None), (signal.SIGSTOP, signal.SIGCONT)])
def test_redis_falls_and_rises_under_load(service, redis, fall, rise):
    with load(service) as (seen, seconds):
        until(lambda: all(seen[kind] > 20 for kind in WHOLE))
        redis.send(fall)
        until(lambda: all(seen[kind] > 25 for kind in WITHOUT_USER))
        assert service.client.get("/readyz").status_code == 200
        if rise is None:
            redis.start()
        else:
            redis.send(rise)
        before = Counter(seen)
        until(lambda: all(seen[kind] > before[kind] + 25 for kind in WHOLE))
    assert set(seen) == WHOLE | WITHOUT_USER, "no 5xx; items are served from the process's own table"
    late = sorted(seconds)[int(0.99 * len(seconds))]
    assert late < DEADLINE + 2, "a broken store is not waited for"
