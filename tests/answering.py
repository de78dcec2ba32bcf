"""A handler of HTTP requests that says nothing by itself, for the servers that the tests start."""

import json
from http.server import BaseHTTPRequestHandler


class Answering(BaseHTTPRequestHandler):
    def reply(self, status, content):
        """Answer with a string as plain text, with anything else as JSON."""
        plain = isinstance(content, str)
        body = content.encode() if plain else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if plain else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
