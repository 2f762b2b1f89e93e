"""A server between a client and an S3 server that fails as servers and networks do."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | None
"""What happens to a request: "403", "500" and "503" answer it, "lost" and "answer lost" end its connection before and
after the server has done what it asks, None lets it pass."""

CODES = {"403": "InvalidAccessKeyId", "500": "InternalError", "503": "SlowDown"}


class FaultyS3:
    """Passes requests at ``address`` on to a server, but for those that `failing` lets fail."""

    def __init__(self, address: str, server: str) -> None:
        self.address = address
        self.failed = 0
        self._requests = 0
        self._fault: Callable[[int], Fault] = lambda number: None
        self._counting = threading.Lock()
        self._behind = urlsplit(server).netloc
        self._server = ThreadingHTTPServer(("127.0.0.1", urlsplit(address).port or 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @contextmanager
    def failing(self, fault: Callable[[int], Fault]) -> Iterator[None]:
        """While the block runs, ask ``fault`` what happens to each request, by its number from 0."""
        self.failed = self._requests = 0
        before, self._fault = self._fault, fault
        try:
            yield
        finally:
            self._fault = before

    def close(self) -> None:
        """Nobody answers here any more."""
        self._server.shutdown()
        self._server.server_close()

    def _next(self) -> Fault:
        with self._counting:
            number, self._requests = self._requests, self._requests + 1
            found = self._fault(number)
            self.failed += found is not None
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = owner._next()
                if fault in CODES:
                    self.answer(int(fault), {}, f"<Error><Code>{CODES[fault]}</Code></Error>".encode())
                elif fault == "lost":
                    self.close_connection = True
                else:
                    status, headers, content = self.passed_on(body)
                    if fault == "answer lost":
                        self.close_connection = True
                    else:
                        self.answer(status, headers, content)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

            def passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                connection = http.client.HTTPConnection(owner._behind)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                content = answer.read()
                headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
                connection.close()
                return answer.status, headers, content

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, format: str, *_: object) -> None:
                """Says nothing."""

        return Handler


HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding")
