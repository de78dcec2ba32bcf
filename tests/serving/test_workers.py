"""Several processes behind one port: they share the callers, add up their figures, and are started anew if they die."""

from __future__ import annotations

import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest

from serving.port import reserved
from tests.services.servers import free_port
from tests.serving.conftest import started

REQUEST = {"user_id": "c1", "item_ids": ["s1", "s2"]}


def workers_of(service):
    """The processes that answer: the children of the one that was started, other than the registry's follower."""
    found = set()
    for child in psutil.Process(service.process.pid).children():
        with suppress(psutil.Error):  # it has just died
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def connections(pid):
    """Callers that a process holds a connection of."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(pid).net_connections("tcp"))


def got(service, path):
    """On a connection of its own: an old one may lead to a process that is gone."""
    return httpx.get(f"{service.client.base_url}{path}", timeout=30)


def answers(service):
    """How many rankings /metrics counts, of all processes."""
    found = re.search(r'^tandem_answers_total\{endpoint="/rank".*\} (\S+)$', got(service, "/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def eventually(holds, within=60):
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_port_is_nobody_elses_and_can_be_taken_again_at_once():
    """Though the system remembers for a minute the connections that the server was the first to close."""
    place = "127.0.0.1", free_port()
    with reserved(*place) as kept:
        # As each worker gets it.
        with pickle.loads(pickle.dumps(kept)) as worker:
            worker.listen()
            with socket.create_connection(place) as caller:
                worker.accept()[0].close()
                assert caller.recv(1) == b""
        with pytest.raises(OSError, match="in use"):
            reserved(*place)
    reserved(*place).close()


def test_two_workers_answer_on_one_port(shop, tmp_path):
    with started(shop, tmp_path / "log", "--workers", "2") as service:
        eventually(lambda: len(workers_of(service)) == 2)
        address = service.client.base_url

        def asked(count):
            """Requests, each on a connection of its own, that may be any worker's."""
            for _ in range(count):
                assert httpx.post(f"{address}/rank", json=REQUEST, timeout=30).status_code == 200

        asked(40)
        assert answers(service) == 40
        with ExitStack() as kept:
            callers = [kept.enter_context(httpx.Client(base_url=address)) for _ in range(40)]
            assert {caller.get("/livez").status_code for caller in callers} == {200}
            assert all(connections(pid) >= 5 for pid in workers_of(service))

        before = workers_of(service)
        killed = min(before)
        psutil.Process(killed).send_signal(signal.SIGKILL)
        # The other one goes on, and another takes the place of the one that died.
        eventually(lambda: len(workers_of(service) - {killed}) == 2)
        eventually(lambda: got(service, "/readyz").status_code == 200)
        asked(20)
        assert answers(service) == 60
        assert service.process.poll() is None
    assert not any(psutil.pid_exists(pid) for pid in before)


def test_a_port_that_somebody_has_is_refused(service):
    """Two services that shared a port would answer each other's callers."""
    taken = str(service.client.base_url.port)
    command = [sys.executable, "-m", "serving", "--port", taken, "--workers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr
    assert service.client.get("/livez").status_code == 200
