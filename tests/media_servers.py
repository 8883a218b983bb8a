"""What the tests of media access share: a server that misbehaves on demand, and MediaAccesses.

No access leaves a temporary file behind.
"""

from __future__ import annotations

import hashlib
import itertools
import resource
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streamproc.errors import VideoError
from streamproc.storage.media import MediaAccess

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def never():
    """A `stop` that never asks to stop."""
    return False


def after(calls):
    """A `stop` that becomes true when it was asked `calls` times."""
    count = itertools.count(1)
    return lambda: next(count) > calls


class Server:
    """A real HTTP server on 127.0.0.1.

    `routes` gives what answers each path, `asked` records every request.
    """

    def __init__(self):
        self.routes = {}
        self.asked = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                outer.routes.get(self.path.partition("?")[0], status(404))(self)

            def do_HEAD(self):
                outer.asked.append(f"HEAD {self.path}")
                status(405)(self)

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # a client that goes away is what many tests are about

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self):
        """Stop serving, and free whoever waits for `closing`."""
        self.closing.set()
        self.http.shutdown()
        self._thread.join()
        self.http.server_close()


def answer(handler, code=200, body=b"", **headers):
    """Send a status, headers (with _ for -) and a body."""
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def whole(body=CONTENT):
    """A route that sends the whole body and its length."""
    return lambda handler: answer(handler, body=body, Content_Length=len(body))


def cut_off(handler):
    """Send ten bytes where the length of the whole content is announced."""
    answer(handler, body=CONTENT[:10], Content_Length=len(CONTENT))


def status(code, **headers):
    """A route that sends a status without a body."""
    return lambda handler: answer(handler, code, Content_Length=0, **headers)


def redirect(location, code=302):
    """A route that redirects to `location`."""
    return status(code, Location=location)


def in_turn(*routes):
    """Answer the first request by the first route, and so on; the last one stays."""
    waiting = list(routes)

    def route(handler):
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])(handler)

    return route


def reset(handler):
    """Send half of the file, then break the connection off with a RST."""
    answer(handler, body=CONTENT[:1000], Content_Length=len(CONTENT))
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def endless(handler):
    """Send content until the client goes away."""
    answer(handler)
    while True:
        handler.wfile.write(CONTENT)


@contextmanager
def running_server():
    """Give a server that is closed on leaving."""
    made = Server()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def accesses(root, temporary, *hosts):
    """Give what makes a MediaAccess, and see to it that no temporary file outlives the test."""
    temporary.mkdir()

    def make(**changes):
        values = {
            "allowed_hosts": hosts,
            "max_file_bytes": 10**6,
            "attempts": 3,
            "backoff_seconds": 0.001,
        }
        values |= {"timeout_seconds": 5.0, "temporary_folder": temporary}
        return MediaAccess(media_root=root, **(values | changes))

    yield make
    assert list(temporary.iterdir()) == []


def read(access, uri, *, kind="video", stop=never, **expected):
    """The content of the file that a URI leads to."""
    with access.open(uri, kind=kind, stop=stop, **expected) as path:
        return path.read_bytes()


def refusal(access, uri, error=VideoError, **arguments):
    """The text of the refusal, which is one line."""
    with pytest.raises(error) as raised:
        read(access, uri, **arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@contextmanager
def largest_file(size_bytes):
    """Let the kernel refuse larger files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
