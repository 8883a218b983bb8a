"""Which `Host` a service answers to.

A web page may give its own name the address of a service (DNS rebinding), and so have the reader's
browser ask it from inside the network. Such a request names the page's host. An address, a name
without a dot and a name of a private domain cannot be such a page's.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiohttp.typedefs import Handler, Middleware

_PRIVATE = ("localhost", "local", "internal", "svc")
"""Last parts of names that nobody can register (RFC 6761, RFC 6762), and Kubernetes' own."""


def is_own_host(host: str, named: Collection[str]) -> bool:
    """Whether a `Host` header, with or without a port, is one that this service answers to."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    if "." not in name or name.rpartition(".")[2] in _PRIVATE or name in named:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_host(named: Collection[str]) -> Middleware:
    """Return a middleware for aiohttp that refuses requests for another host."""
    known = {socket.gethostname().lower(), *(name.lower() for name in named)}

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_own_host(request.headers.get("Host", ""), known):
            return await handler(request)
        text = "this service has another name: see service.allowed_hosts"
        return web.Response(
            body=orjson.dumps({"error": text}), status=421, content_type="application/json"
        )

    return middleware
