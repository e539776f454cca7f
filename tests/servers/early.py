"""Python's http.server. See tests/servers/__init__.py."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self) -> bool:
        if self.path == "/early":
            self._answer(401, b"no")
            return False
        return super().handle_expect_100()

    def do_GET(self) -> None:
        if self.path == "/early":
            self._answer(401, b"no")
            return
        with open(sys.argv[2], "a") as log:
            log.write(f"{self.command} {self.path}\n")
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer(200, b"EXECUTED")

    do_POST = do_DELETE = do_GET  # noqa: N815 - http.server wants these names

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
