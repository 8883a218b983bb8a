"""What may be read: from which hosts and buckets, how large, and with which checksum.

Hosts are allowed by *name*. Whoever runs the name service of an allowed host can point that name at
any address (DNS rebinding). Where that matters, the remedy is a network policy, not this module.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from streamproc.errors import UsageError
from streamproc.shown import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"(\*\.)?[^\s/?#@*]+")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PORTS = {"http": 80, "https": 443}


class RefusedError(Exception):
    """The file cannot be had, and asking again gives the same; the text is for the user.

    It never leaves `media`, which turns it into a VideoError or a TracksError.
    """


class MediaStoppedError(Exception):
    """The caller's `stop` became true while a file was fetched or hashed."""


def scheme_of(uri: str) -> str:
    """The scheme in lower case; empty where there is none."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must be: not over the limit, and of the size and checksum that the event gives.

    The methods raise RefusedError. `name` is how the file is called in their texts.
    """

    sha256: str | None
    size_bytes: int | None
    max_file_bytes: int

    def check_limit(self, name: str, size_bytes: int) -> None:
        """Refuse a file over the limit, whatever size was announced."""
        if size_bytes > self.max_file_bytes:
            raise RefusedError(
                f"{name}: is over the limit of {self.max_file_bytes:,} bytes; "
                "raise limits.max_file_bytes if you trust this file"
            )

    def check_size(self, name: str, size_bytes: int) -> None:
        """Refuse a size other than the event's."""
        self.check_limit(name, size_bytes)
        if self.size_bytes is not None and size_bytes != self.size_bytes:
            raise RefusedError(
                f"{name}: expected {self.size_bytes:,} bytes as the event says, "
                f"got {size_bytes:,}; the file was changed or cut off: submit it again"
            )

    def check_sha256(self, name: str, sha256: str) -> None:
        """Refuse content other than the event's."""
        if self.sha256 is not None and sha256 != self.sha256.lower():
            raise RefusedError(
                f"{name}: expected sha256 {self.sha256} as the event says, got {sha256}; "
                "the file was changed: submit it again"
            )


class Allowed:
    """The two allow-lists; an empty list allows nothing. Immutable, so safe in any thread.

    `hosts` holds `host` (on the scheme's default port), `host:port`, or `*.example.org`, which
    stands for all hosts below that domain but not for the domain itself. `buckets` holds `bucket`
    or `bucket/prefix`, where the prefix is made of whole segments of the key.

    Raises UsageError for an invalid entry, and for buckets if s3fs is not installed.
    """

    def __init__(self, *, hosts: Sequence[str], buckets: Sequence[str]) -> None:
        self._hosts = tuple(_host_entry(entry) for entry in hosts)
        self._buckets = tuple(_bucket_entry(entry) for entry in buckets)
        if buckets and importlib.util.find_spec("s3fs") is None:
            raise UsageError(
                "remote.allowed_buckets: S3 needs an extra: pip install 'streamproc[s3]'"
            )

    def url(self, uri: str, redirected_from: URL | None = None) -> URL:
        """Parse and check an http(s) address; raises RefusedError.

        Request exactly what is returned: parsing the text again could give another address.
        """
        from yarl import URL

        subject = f"{shown(uri)}:"
        if redirected_from is not None:
            subject = f"{shown(str(redirected_from))}: redirects to {shown(uri)}, which"
        try:
            url = URL(uri) if redirected_from is None else redirected_from.join(URL(uri))
            host = url.raw_host
            port = url.port
        except ValueError as error:
            raise RefusedError(
                f"{subject} is no valid address; expected http(s)://host/path"
            ) from error
        # An empty part of a name is no error to yarl, but to whoever looks the name up.
        if url.scheme not in _PORTS or not host or "" in host.removesuffix(".").split("."):
            raise RefusedError(
                f"{subject} is no address to fetch from; expected http(s)://host/path"
            )
        was_encrypted = redirected_from is not None and redirected_from.scheme == "https"
        if was_encrypted and url.scheme == "http":
            raise RefusedError(f"{subject} is not encrypted any more; give the final address")
        if url.raw_user is not None or url.raw_password is not None:
            raise RefusedError(
                f"{subject} holds a user name or password; give an address without them"
            )
        default_port = _PORTS[url.scheme]
        if not any(_allows(entry, host, port, default_port) for entry in self._hosts):
            name = f"[{host}]" if ":" in host else host
            missing = name if port == default_port else f"{name}:{port}"
            raise RefusedError(
                f"{subject} is on a host that is not allowed; add {missing} to remote.allowed_hosts"
            )
        return url

    def object(self, uri: str) -> str:
        """Check an S3 URI and return it as s3fs takes it; raises RefusedError."""
        bucket, _, key = uri[len("s3://") :].partition("/")
        segments = key.split("/")
        is_well_formed = uri[2:5] == "://" and _BUCKET.fullmatch(bucket) and segments[-1]
        # s3fs would cut off what follows a '?' as a version, and gateways may resolve '..': both
        # would get round the prefix.
        if not is_well_formed or "?" in key or {".", ".."} & {*segments}:
            raise RefusedError(
                f"{shown(uri)}: expected s3://bucket/key, with no '?' in the key, "
                "and no '.' or '..' as a part of it"
            )
        folders = segments[:-1]
        if not any(
            bucket == name and folders[: len(prefix)] == prefix for name, prefix in self._buckets
        ):
            raise RefusedError(
                f"{shown(uri)}: is in a bucket or below a prefix that is not allowed; "
                f"add {bucket} to remote.allowed_buckets"
            )
        return f"s3://{bucket}/{key}"


def _host_entry(entry: str) -> tuple[str, int | None, bool]:
    """Read an entry as host, port, and whether it stands for the hosts below it."""
    from yarl import URL

    is_wildcard = entry.startswith("*.")
    host = None
    port = None
    # A ValueError leaves `host` None: the entry is no valid address.
    with contextlib.suppress(ValueError):
        if _HOST.fullmatch(entry):
            parts = urlsplit(f"//{entry.removeprefix('*.')}")
            port = parts.port
            if parts.hostname:
                host = URL.build(scheme="http", host=parts.hostname).raw_host
    if not host:
        raise UsageError(
            f"remote.allowed_hosts: expected host, host:port or *.example.org, got {entry!r}"
        )
    return host, port, is_wildcard


def _allows(
    entry: tuple[str, int | None, bool], host: str, port: int | None, default_port: int
) -> bool:
    name, allowed_port, is_wildcard = entry
    if allowed_port is None:
        allowed_port = default_port
    is_named = host.endswith(f".{name}") if is_wildcard else host == name
    return is_named and port == allowed_port


def _bucket_entry(entry: str) -> tuple[str, list[str]]:
    """Read an entry as bucket and the leading segments of the keys."""
    bucket, _, prefix = entry.strip("/").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"remote.allowed_buckets: expected bucket or bucket/prefix, got {entry!r}")
    return bucket, prefix.split("/") if prefix else []
