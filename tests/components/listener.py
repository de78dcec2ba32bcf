"""A real HTTP server that keeps what it was told."""

import json
import threading
from contextlib import contextmanager
from http.server import HTTPServer

from tests.answering import Answering


class Listener(HTTPServer):
    """Answers with the given statuses in turn, then with 200, and keeps what it was told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.told, self.statuses = [], []


class Handler(Answering):
    def do_POST(self):
        content = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["content-type"] == "application/json"
        self.server.told.append(json.loads(content))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()


@contextmanager
def listening():
    """A listener on a port of its own, and its address."""
    with Listener() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"http://127.0.0.1:{server.server_port}/hook?token=secret"
        server.shutdown()
