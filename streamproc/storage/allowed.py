"""What may be fetched: from which hosts and buckets, how large, with which checksum; and how addresses are shown.

What is allowed is decided by a host's *name*. Whoever runs the name service of an allowed host can
point that name at any address (DNS rebinding): where that matters a network policy is the remedy,
not this module.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from streamproc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"(\*\.)?[^\s/?#@*]+")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PORTS = {"http": 80, "https": 443}
_MAX_SHOWN = 200


class Refused(Exception):  # noqa: N818 - never leaves `media`, which knows if a video or tracks were asked for
    """The file cannot be had, and asking again gives the same; the text is for the user."""


def scheme_of(uri: str) -> str:
    """The scheme in lower case; empty where there is none."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def shown(uri: str) -> str:
    """The URI for logs and error texts: on one line, not too long, without a password or a signed query."""
    text = re.sub(r"//[^/?#]*@", "//…@", uri)
    text = re.sub(r"(?s)\?.*", "?…", text)
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return (
        text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN // 2]}…{text[-_MAX_SHOWN // 2 :]}"
    )


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must be: size and checksum where the event gives them, and never over the limit.

    Raises Refused.
    """

    sha256: str | None
    size_bytes: int | None
    max_file_bytes: int

    def check_limit(self, name: str, size_bytes: int) -> None:
        """Refuse what is over the limit, whatever was announced."""
        if size_bytes > self.max_file_bytes:
            raise Refused(
                f"{name}: is over the limit of {self.max_file_bytes:,} bytes; "
                "raise limits.max_file_bytes if you trust this file"
            )

    def check_size(self, name: str, size_bytes: int) -> None:
        """Refuse another size than the event's."""
        self.check_limit(name, size_bytes)
        if self.size_bytes is not None and size_bytes != self.size_bytes:
            raise Refused(
                f"{name}: expected {self.size_bytes:,} bytes as the event says, got {size_bytes:,}; "
                "the file was changed or cut off: submit it again"
            )

    def check_sha256(self, name: str, sha256: str) -> None:
        """Refuse another content than the event's."""
        if self.sha256 is not None and sha256 != self.sha256.lower():
            raise Refused(
                f"{name}: expected sha256 {self.sha256} as the event says, got {sha256}; "
                "the file was changed: submit it again"
            )


class Allowed:
    """The two allow-lists; an empty list allows nothing. Immutable, so safe in any thread.

    `hosts` holds `host` (on the scheme's usual port), `host:port`, or `*.example.org` for all hosts
    below that domain, but not itself. `buckets` holds `bucket` or `bucket/prefix`, a prefix being
    whole segments of the key. Raises UsageError for an entry that means nothing, and for buckets
    where s3fs is missing.
    """

    def __init__(self, *, hosts: Sequence[str], buckets: Sequence[str]) -> None:
        self._hosts = tuple(_host_entry(entry) for entry in hosts)
        self._buckets = tuple(_bucket_entry(entry) for entry in buckets)
        if buckets and importlib.util.find_spec("s3fs") is None:
            raise UsageError(
                "remote.allowed_buckets: S3 needs an extra: pip install 'streamproc[s3]'"
            )

    def url(self, uri: str, said_by: URL | None = None) -> URL:
        """The address, parsed once: what is returned is what was checked, and must be what is asked.

        `said_by` is the address that redirects to it. Raises Refused.
        """
        from yarl import URL

        subject = (
            f"{shown(uri)}:"
            if said_by is None
            else f"{shown(str(said_by))}: redirects to {shown(uri)}, which"
        )
        try:
            url = URL(uri) if said_by is None else said_by.join(URL(uri))
            host, port = url.raw_host, url.port
        except ValueError as error:
            raise Refused(f"{subject} is no valid address; expected http(s)://host/path") from error
        if url.scheme not in _PORTS or not host:
            raise Refused(f"{subject} is no address to fetch from; expected http(s)://host/path")
        if said_by is not None and said_by.scheme == "https" and url.scheme == "http":
            raise Refused(f"{subject} is not encrypted any more; give the final address")
        if url.raw_user is not None or url.raw_password is not None:
            raise Refused(f"{subject} holds a user name or password; give an address without them")
        usual_port = _PORTS[url.scheme]
        if not any(_allows(entry, host, port, usual_port) for entry in self._hosts):
            name = f"[{host}]" if ":" in host else host
            came = name if port == usual_port else f"{name}:{port}"
            raise Refused(
                f"{subject} is on a host that is not allowed; add {came} to remote.allowed_hosts"
            )
        return url

    def object(self, uri: str) -> str:
        """The S3 URI as s3fs takes it. Raises Refused."""
        bucket, _, key = uri[len("s3://") :].partition("/")
        segments = key.split("/")
        # A '?' would be cut off as a version, and gateways may resolve '..': both would get round
        # the prefix.
        well_formed = uri[2:5] == "://" and _BUCKET.fullmatch(bucket) and segments[-1]
        if not well_formed or "?" in key or {".", ".."} & {*segments}:
            raise Refused(
                f"{shown(uri)}: expected s3://bucket/key, with no '?' and no '.' or '..' as a part of the key"
            )
        if not any(
            bucket == name and segments[:-1][: len(prefix)] == prefix
            for name, prefix in self._buckets
        ):
            raise Refused(
                f"{shown(uri)}: is in a bucket or below a prefix that is not allowed; "
                f"add {bucket} to remote.allowed_buckets"
            )
        return f"s3://{bucket}/{key}"


def _host_entry(entry: str) -> tuple[str, int | None, bool]:
    """Read an entry as host, port, and whether it stands for the hosts below it."""
    from yarl import URL

    is_wild = entry.startswith("*.")
    try:
        parts = urlsplit(f"//{entry[2 * is_wild :]}") if _HOST.fullmatch(entry) else None
        host = (
            URL.build(scheme="http", host=parts.hostname).raw_host
            if parts and parts.hostname
            else None
        )
        port = parts.port if parts else None
    except ValueError:
        host, port = None, None
    if not host:
        raise UsageError(
            f"remote.allowed_hosts: expected host, host:port or *.example.org, got {entry!r}"
        )
    return host, port, is_wild


def _allows(
    entry: tuple[str, int | None, bool], host: str, port: int | None, usual_port: int
) -> bool:
    name, allowed_port, is_wild = entry
    named = host.endswith(f".{name}") if is_wild else host == name
    return named and port == (usual_port if allowed_port is None else allowed_port)


def _bucket_entry(entry: str) -> tuple[str, list[str]]:
    """Read an entry as bucket and the leading segments of the keys."""
    bucket, _, prefix = entry.strip("/").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"remote.allowed_buckets: expected bucket or bucket/prefix, got {entry!r}")
    return bucket, prefix.split("/") if prefix else []
