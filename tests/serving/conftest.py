"""The real service on what the real pipeline has deployed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pipelines.shop import ROOT
from tests.services.servers import free_port

READY_WITHIN = 90.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path

    def post(self, path: str, content: Any) -> httpx.Response:
        return self.client.post(path, json=content)


@pytest.fixture(scope="session")
def service(shop, tmp_path_factory) -> Iterator[Service]:
    """`tandem serve` in a process of its own."""
    with started(shop, tmp_path_factory.mktemp("service") / "log", log_share=1, log_seconds=0.5) as running:
        yield running


@contextmanager
def started(shop: Path, log: Path, *flags: str, **settings: object) -> Iterator[Service]:
    """`tandem serve` with some flags and settings, ready to answer."""
    command = ["-m", "pipelines.cli", "serve", "--every", "1000", *flags]
    with _running(command, log, {"TANDEM_HOME": str(shop / "home")}, settings) as service:
        yield service


@contextmanager
def alone(shop: Path, log: Path, models: Path, **settings: object) -> Iterator[Service]:
    """The service on a folder of models that nothing else keeps, ready to answer."""
    features = shop / "home" / "feast" / "shop.yaml"
    own = {"TANDEM_HOME": str(shop / "home"), "BENTOML_HOME": str(log.parent / "bentoml")}
    with _running(["-m", "serving"], log, own, {"models": models, "feature_store": features, **settings}) as service:
        yield service


@contextmanager
def _running(command: list[str], log: Path, own: dict[str, str], settings: dict[str, object]) -> Iterator[Service]:
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **own}
    # A machine that runs many tests at once answers late, and nothing here is about that.
    given = {"feature_deadline": 10, **settings}
    environment |= {f"TANDEM_SERVE_{name.upper()}": str(value) for name, value in given.items()}
    with log.open("wb") as file:
        arguments = [sys.executable, *command, "--port", str(port)]
        process = subprocess.Popen(arguments, env=environment, stdout=file, stderr=file)
    headers = {"authorization": f"Bearer {settings['api_key']}"} if "api_key" in settings else {}
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, headers=headers)
    try:
        _await_ready(client, process, log)
        yield Service(client, process, log)
    finally:
        client.close()
        process.terminate()
        process.wait(30)


def _await_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready within {READY_WITHIN} s: {log.read_text()}")
