"""Real servers as processes of the test; a test is skipped where the program is not installed."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from tests.pipelines.shop import ROOT

STARTED_WITHIN = 150


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def needed(name: str, *places: str) -> str:
    """The path of a program; the test is skipped where it is not installed."""
    path = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *places]))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextmanager
def process(command: list[str], log: Path, address: str, env: dict[str, str]) -> Iterator[None]:
    """A server that answers at an address: http://host:port/path, or tcp://host:port."""
    with log.open("wb") as output:
        started = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
        try:
            wait_for(address, started, log)
            yield
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait(timeout=30)


def answers(address: str) -> bool:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "tcp":
        with socket.create_connection((parts.hostname, parts.port), timeout=5):
            return True
    with urllib.request.urlopen(address, timeout=5):
        return True


def wait_for(address: str, started: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < deadline:
        assert started.poll() is None, log.read_text()[-2000:]
        try:
            if answers(address):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{address} did not answer:\n{log.read_text()[-2000:]}")


@contextmanager
def postgres() -> Iterator[str]:
    """An empty PostgreSQL database, reached by a socket in its own folder; its SQLAlchemy address."""
    binaries = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
    initdb, control = needed("initdb", *binaries), needed("pg_ctl", *binaries)
    # Not in pytest's folder: each pytest that starts closes that to all but its own user.
    with TemporaryDirectory(prefix="tandem-postgres-", ignore_cleanup_errors=True) as folder:
        data, port = Path(folder, "data"), free_port()
        as_user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL does not run as root.
            as_user = [needed("runuser"), "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        options = f"-p {port} -k {folder} -c listen_addresses= -c fsync=off"
        subprocess.run([*as_user, initdb, "-D", data, "-U", "tandem", "-A", "trust"], check=True, capture_output=True)
        start = [*as_user, control, "-D", data, "-o", options, "-l", Path(folder, "log"), "-w", "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql+psycopg2://tandem@/postgres?host={folder}&port={port}"
        finally:
            # Whether a server that nobody needs any more stops within a minute says nothing of what was tested.
            subprocess.run([*as_user, control, "-D", data, "-m", "immediate", "stop"], check=False, capture_output=True)


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """An empty Redis that writes nothing to disk; its host and port."""
    program, port = needed("redis-server"), free_port()
    folder.mkdir()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with process(command, folder / "log", f"tcp://127.0.0.1:{port}", dict(os.environ)):
        yield f"127.0.0.1:{port}"


class LastingRedis:
    """A Redis that keeps what it was told on disk, so that it can be killed and started again."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self.folder, self.port, self.program = folder, free_port(), needed("redis-server")
        self.password = password
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--requirepass", self.password]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        ping = ["redis-cli", "-p", str(self.port), *(["-a", self.password] if self.password else []), "ping"]
        deadline = time.monotonic() + 60
        while b"PONG" not in subprocess.run(ping, capture_output=True, check=False).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def send(self, sign: int) -> None:
        assert self.process is not None
        self.process.send_signal(sign)
        if sign == signal.SIGKILL:
            self.process.wait(30)


@contextmanager
def lasting_redis(folder: Path, password: str = "") -> Iterator[LastingRedis]:
    """One that runs, and is killed in the end."""
    made = LastingRedis(folder, password)
    made.start()
    try:
        yield made
    finally:
        made.send(signal.SIGKILL)


def online_in(redis: LastingRedis, folder: Path, more: str = "") -> Path:
    """The laptop's feature store with its online features in a Redis; more: of the connection, such as `,db=3`."""
    content = yaml.safe_load((ROOT / "feature_repo/environments/laptop.yaml").read_text())
    content["online_store"] = {"type": "redis", "connection_string": f"127.0.0.1:{redis.port}{more}"}
    path = folder / "redis.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
