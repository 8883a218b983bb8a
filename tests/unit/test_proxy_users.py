"""Who may ask the live page, and under which name, where a proxy says who asks: over real HTTP."""

from __future__ import annotations

import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from streamproc.decisions import parse_decision
from streamproc.errors import UsageError
from streamproc.services.live.gallery import LiveGallery, Snapshot
from streamproc.services.live.proxy import ProxyUsers
from streamproc.services.live.server import PageServer

HEADER = "X-Forwarded-User"
PATH = "/api/decisions?gallery=lobby"
TOKEN = "open sesame open sesame"


class Source:
    """A gallery of two people, and what is decided of them."""

    def __init__(self):
        persons = tuple({"person_key": f"v/{number}"} for number in (1, 2))
        self.known = LiveGallery("lobby", Snapshot(persons=persons))
        self.decided = []

    async def gallery(self, _):
        """The one gallery."""
        return self.known

    async def decide(self, decision):
        """Keep a decision."""
        self.decided.append(decision)


async def asked(source, *, proxies, token=None, method="GET", headers=(), **options):
    """Status and text of one answer by a server with these settings."""
    users = ProxyUsers(HEADER, proxies)
    server = TestServer(PageServer(source, token=token, users=users).app())
    async with TestClient(server) as client:
        answer = await client.request(method, PATH, headers=list(headers), **options)
        return answer.status, await answer.text()


SAID = {"kind": "pair", "person_keys": ["v/1", "v/2"], "verdict": "same", "decided_by": "another"}


async def test_a_trusted_proxy_names_who_decides():
    """Whatever the page says of who decided; and the page shows under which name it decides."""
    source = Source()
    headers = [(HEADER, "Jo Müller")]
    status, text = await asked(
        source, proxies=["127.0.0.0/8"], token=TOKEN, method="POST", headers=headers, json=SAID
    )
    assert status == 201
    assert parse_decision(text.encode()).decided_by == "Jo Müller"
    assert [decision.decided_by for decision in source.decided] == ["Jo Müller"]
    status, text = await asked(source, proxies=["127.0.0.1"], headers=headers)
    assert (status, "Jo Müller" in json.loads(text)["place"]) == (200, True)


@pytest.mark.parametrize(
    ("proxies", "headers", "expected"),
    [
        (["10.0.0.1"], [(HEADER, "jo")], 403),
        (["10.0.0.1", "::1"], [(HEADER.lower(), "jo")], 403),
        (["127.0.0.1"], [(HEADER, "jo"), (HEADER, "me")], 403),
        (["127.0.0.1"], [(HEADER, "")], 403),
        (["127.0.0.1"], [(HEADER, "j" * 300)], 403),
        (["127.0.0.1"], [("X-Forwarded-For", "127.0.0.1")], 401),
        (["10.0.0.1"], [("X-Forwarded-For", "10.0.0.1"), (HEADER, "jo")], 403),
        (["127.0.0.1"], [(HEADER, "jo"), ("Origin", "http://evil.example")], 403),
        (["127.0.0.1"], [(HEADER, "jo"), ("Host", "evil.example")], 403),
    ],
)
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_nobody_else_names_themselves(proxies, headers, expected, token):
    """Not from another address, not twice, not from another site, and not by saying nothing."""
    source = Source()
    status, _ = await asked(
        source, proxies=proxies, token=token, method="POST", headers=headers, json=SAID
    )
    assert (status, source.decided) == (expected, [])


@pytest.mark.parametrize(
    ("header", "proxies", "text"),
    [
        ("X User", ["127.0.0.1"], "name of a header"),
        (HEADER, [], "review.trusted_proxies"),
        (HEADER, ["proxy.example"], "addresses or networks"),
        (HEADER, ["::/0"], "everybody"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(header, proxies, text):
    """In one line that names the setting."""
    with pytest.raises(UsageError, match=text):
        ProxyUsers(header, proxies)
