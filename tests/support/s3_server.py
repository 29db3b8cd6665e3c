"""An S3 server in this process, for pyarrow's real S3 client, with faults on demand."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

# Any key will do for the server; a real one of whoever runs the tests is hidden.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_SESSION_TOKEN": "",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "bucket"

Environ = dict[str, Any]
Fault = Callable[[Environ, Callable, "Faults"], Iterable[bytes]]


@dataclass
class Faults:
    """Stands in front of the server's application. Every `every`-th request that `chosen` picks meets `fault`.

    One that met it and is sent anew passes, unless all meet it: requests come side by side, and which are the
    every-th is chance.
    """

    application: Callable
    fault: Fault | None = None
    every: int = 1
    chosen: Callable[[Environ], bool] = lambda environ: True
    requests: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    distinct: set[tuple[str, ...]] = field(default_factory=set)
    met: int = 0
    _seen: int = 0
    _hit: set[tuple[str, ...]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: Environ, start: Callable) -> Iterable[bytes]:
        if self._is_next(environ):
            return self.fault(environ, start, self)
        return self.application(environ, start)

    def _is_next(self, environ: Environ) -> bool:
        with self._lock:
            self.requests.append(environ["REQUEST_METHOD"])
            self.places.append(environ["PATH_INFO"])
            request = tuple(environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
            self.distinct.add(request)
            if self.fault is None or not self.chosen(environ):
                return False
            self._seen += 1
            is_next = self.every == 1 or (self._seen % self.every == 0 and request not in self._hit)
            if is_next:
                self._hit.add(request)
                self.met += 1
            else:
                self._hit.discard(request)
            return is_next

    def requests_in(self, path: str) -> list[str]:
        """Those for what is in a folder: threads of earlier tests may still ask for something else."""
        return [one for one, place in zip(self.requests, self.places, strict=True) if path in place]

    @contextlib.contextmanager
    def injected(
        self, fault: Fault, every: int = 1, chosen: Callable[[Environ], bool] = lambda environ: True
    ) -> Iterator[Faults]:
        self.fault, self.every, self.chosen, self.met, self._seen = fault, every, chosen, 0, 0
        self.requests, self.places, self.distinct, self._hit = [], [], set(), set()
        try:
            yield self
        finally:
            self.fault = None


def answers(status: str, code: str) -> Fault:
    """The request is refused before it does anything."""

    def fault(environ: Environ, start: Callable, faults: Faults) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml")])
        return [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()]

    return fault


def cut_before(environ: Environ, start: Callable, faults: Faults) -> Iterable[bytes]:
    """The connection goes before the request does anything."""
    return _cut(environ, start)


def cut_after(environ: Environ, start: Callable, faults: Faults) -> Iterable[bytes]:
    """The request is carried out, but its answer is lost."""
    list(faults.application(environ, lambda *_: None))
    return _cut(environ, start)


def cut_half_way(environ: Environ, start: Callable, faults: Faults) -> Iterable[bytes]:
    """The answer breaks off in the middle of its body."""
    head: list[Any] = []
    body = b"".join(faults.application(environ, lambda status, headers, *_: head.extend((status, headers))))
    start(*head)
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def completes_an_upload(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] == "POST" and "uploadId=" in environ["QUERY_STRING"]


def _cut(environ: Environ, start: Callable) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    start("500 Never Seen", [])
    return [b""]


@dataclass(frozen=True)
class S3Server:
    port: int
    faults: Faults
    address: str = "127.0.0.1"

    def uri(self, path: str = BUCKET) -> str:
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override={self.address}:{self.port}"


@contextlib.contextmanager
def running(address: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server on a free port of that address with one empty bucket; CREDENTIALS must be in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server(address, 0, faults, threaded=True)
    server.daemon_threads = True  # a client keeps its connections open
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        opened = S3Server(server.server_port, faults, address)
        system, path = fs.FileSystem.from_uri(f"{opened.uri()}&allow_bucket_creation=true")
        system.create_dir(path)
        yield opened
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
