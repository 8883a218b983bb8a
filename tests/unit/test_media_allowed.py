"""The allow-lists of hosts, and how addresses are shown."""

from __future__ import annotations

import pytest
from yarl import URL

from streamproc.errors import UsageError
from streamproc.shown import shown
from streamproc.storage.allowed import Allowed, RefusedError


@pytest.mark.parametrize(
    ("entry", "uri", "is_allowed"),
    [
        ("example.org", "https://example.org/x", True),
        ("EXAMPLE.org", "http://Example.ORG/x", True),
        ("example.org", "https://example.org:443/x", True),
        ("example.org", "https://example.org:8443/x", False),
        ("example.org", "https://a.example.org/x", False),
        ("example.org", "https://badexample.org/x", False),
        ("example.org", "https://example.org.evil.net/x", False),
        ("example.org", "https://example.org@evil.net/x", False),
        ("example.org", "https://evil.net\\@example.org/x", False),
        ("example.org", "https://evil.net#example.org/x", False),
        ("example.org", "https:example.org/x", False),
        ("example.org", "https:///example.org/x", False),
        ("example.org", "https://[::1/x", False),
        ("example.org", "https://example.org:99999/x", False),
        ("example.org:8443", "https://example.org:8443/x", True),
        ("example.org:8443", "https://example.org/x", False),
        ("*.example.org", "https://a.b.example.org/x", True),
        ("*.example.org", "https://example.org/x", False),
        ("*.example.org", "https://badexample.org/x", False),
        ("*.example.org:81", "http://a.example.org:81/x", True),
        ("bücher.example", "https://xn--bcher-kva.example/x", True),
        ("xn--bcher-kva.example", "https://bücher.example/x", True),
        ("[::1]:81", "http://[::1]:81/x", True),
        ("127.0.0.1", "http://2130706433/x", False),
    ],
)
def test_the_allow_list_of_hosts(entry, uri, is_allowed):
    """An address is allowed exactly where its host and port match the entry."""
    allowed = Allowed(hosts=[entry], buckets=[])
    if is_allowed:
        assert allowed.url(uri).host
    else:
        with pytest.raises(RefusedError):
            allowed.url(uri)


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "https://x", "x/y", "a@b", "x:y", "a b", "*.*.org", "x:70000"]
)
def test_an_allow_list_entry_that_means_nothing_is_a_usage_error(entry):
    """An entry that names no host is a usage error that names the setting."""
    with pytest.raises(UsageError, match=r"remote\.allowed_hosts"):
        Allowed(hosts=[entry], buckets=[])


def test_a_redirect_from_https_to_http_is_refused():
    """A redirect may go from http to https and never back."""
    allowed = Allowed(hosts=["a.org", "a.org:81"], buckets=[])
    assert allowed.url("https://a.org/y", redirected_from=URL("http://a.org/x")).scheme == "https"
    assert allowed.url("//a.org/y", redirected_from=URL("https://a.org/x")).scheme == "https"
    with pytest.raises(RefusedError, match="encrypted"):
        allowed.url("http://a.org/y", redirected_from=URL("https://a.org/x"))


def test_shown_hides_secrets_and_stays_on_one_line():
    """An address is shown without password and query, on one line and of bounded length."""
    assert shown("https://u:p@h/x?sig=1") == "https://…@h/x?…"
    assert "\n" not in shown("a\nb")
    assert len(shown("a" * 9999)) <= 201


@pytest.mark.parametrize("uri", ["http://.example.org/x", "http://a..example.org/x", "http://./x"])
def test_a_name_with_an_empty_part_is_refused(uri):
    """No such name can be looked up: asking for it would raise."""
    with pytest.raises(RefusedError, match="address"):
        Allowed(hosts=["*.example.org"], buckets=[]).url(uri)
