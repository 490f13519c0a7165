"""Servers on this machine: one for http that fails in a chosen way, and moto's for S3."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STATUSES = (401, 403, 404, 410, 429, 500, 502, 503)


class FaultyServer(ThreadingHTTPServer):
    """Serves the files of a folder.

    ``fault(path, number)`` names what happens at the request of this number for a path, counted from 1: a status code,
    "reset" (the connection is cut before an answer), "cut" (in the middle of the content), or nothing.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fault: Callable[[str, int], int | str | None] = lambda path, number: None
        self.ranges = True  # whether parts of files can be asked for
        self.sized = True  # whether Content-Length is said
        self.etag = False
        self.dated = True  # whether Last-Modified is said
        self.retry_after = ""
        self.requests: list[tuple[str, str]] = []  # method and path, with its query
        self.counts: dict[str, int] = {}  # GET requests of each path
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *request: object) -> None:
        """Connections that break are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *message: object) -> None:
        """Nobody listens."""

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        self._answer(self.wfile.write)

    def _answer(self, write: Callable[[bytes], object] | None) -> None:
        server, path = self.server, self.path.split("?")[0]
        server.requests.append((self.command, self.path))
        if write:
            server.counts[path] = server.counts.get(path, 0) + 1
        fault = server.fault(path, max(server.counts.get(path, 0), 1))
        file = server.folder / path.lstrip("/")
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(fault, int) or not file.is_file():
            self._refuse(fault if isinstance(fault, int) else 404)
            return
        self._send(file.read_bytes(), file.stat().st_mtime, write, cut=fault == "cut")

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()

    def _send(self, content: bytes, changed: float, write: Callable[[bytes], object] | None, cut: bool) -> None:
        server, asked = self.server, self.headers.get("Range") if self.server.ranges else None
        whole = len(content)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{whole}")
        else:
            self.send_response(200)
        if server.sized:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        if server.dated:
            self.send_header("Last-Modified", formatdate(changed, usegmt=True))
        if server.etag:
            self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if write is None:
            return
        if cut:
            content = content[: len(content) // 2]
        if server.sized:
            write(content)
        else:
            stream = io.BytesIO(content)
            while chunk := stream.read(1 << 16):
                write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if not cut:
                write(b"0\r\n\r\n")
        if cut:
            self.close_connection = True


@contextlib.contextmanager
def faulty_server(folder: Path) -> Iterator[FaultyServer]:
    """An http server in threads of this process."""
    server = FaultyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return int(other.getsockname()[1])


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server in threads of this process; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_environment(endpoint: str) -> dict[str, str]:
    """The environment in which s3:// means a server of :func:`s3_server`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
