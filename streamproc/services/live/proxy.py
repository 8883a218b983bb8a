"""Who asks, as a proxy that has checked it says in a header.

Anybody can send a header, so it counts only from the addresses of the proxies that are named.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, TypeAlias

from aiohttp import web

from streamproc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_NAME = 256
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class ProxyUsers:
    """The users whom trusted proxies name in a header.

    `proxies` are addresses or networks. Raises UsageError where they are none, or are everybody.
    """

    def __init__(self, header: str, proxies: Sequence[str]) -> None:
        if not _HEADER.fullmatch(header):
            raise UsageError(f"review.user_header: expected the name of a header, got {header!r}")
        if not proxies:
            raise UsageError(
                "review.user_header: set review.trusted_proxies, from which it is accepted"
            )
        self.header = header
        self._networks = tuple(map(_network, proxies))

    def user_of(self, request: web.Request) -> str | None:
        """Return the name that a proxy gave, None where none did.

        Raises HTTPForbidden where somebody else sends the header, or it holds no good name.
        """
        given = request.headers.getall(self.header, [])
        if not given:
            return None
        if not self._is_trusted(request.remote):
            raise web.HTTPForbidden(
                reason=f"{self.header} is accepted from review.trusted_proxies alone"
            )
        name = given[0].strip()
        if len(given) > 1 or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise web.HTTPForbidden(reason=f"expected one name in {self.header}")
        return name

    def _is_trusted(self, address: str | None) -> bool:
        try:
            found = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._networks)


def _network(text: str) -> _Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise UsageError(
            f"review.trusted_proxies: expected addresses or networks, got {text!r}"
        ) from error
    if network.prefixlen == 0:
        raise UsageError(f"review.trusted_proxies: {text} is everybody: name the proxy")
    return network
