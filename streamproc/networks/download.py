"""Downloads the weights of a manifest entry, and resumes a download that was cut off.

A file gets its final name only after its sha256 was checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamproc.errors import MachineError, WeightsError
from streamproc.version import __version__

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from streamproc.networks.manifest import ModelEntry

    Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known

ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
MAX_BYTES = 1024**3
"""Limit for a file whose size the manifest does not give."""

_CHUNK_BYTES = 256 * 1024
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416
_RETRIED_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
)


class _WrongContentError(Exception):
    """What the server sent is not the file that the manifest names."""


@dataclass(slots=True)
class Download:
    """The download of one file into `folder`. Made by `streamproc models pull`.

    Received bytes are in `<file_name>.part`, from which a later call resumes. A lock on it keeps
    other processes out. `wait` sleeps between attempts; tests pass their own.
    """

    entry: ModelEntry
    folder: Path
    progress: Progress = lambda _done, _total: None
    timeout_seconds: float = TIMEOUT_SECONDS
    wait: Callable[[float], None] = time.sleep
    _etag: str | None = field(default=None, init=False)

    def run(self) -> Path:
        """Download, and return the file's path.

        Raises WeightsError if the server has no such file or another one, MachineError if the disk
        fails, or the network ATTEMPTS times.
        """
        path = self.folder / self.entry.file_name
        part_path = path.with_name(f"{path.name}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(part_path) as part:
                self._fetch(part)
                part_path.replace(path)
        except OSError as error:
            raise MachineError(
                f"{self.folder}: cannot be written ({error.strerror or error})"
            ) from error
        return path

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[io.BufferedRandom]:
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MachineError(f"{path}: another process is fetching it") from error
            try:
                yield file
            except WeightsError:
                path.unlink(missing_ok=True)  # its content is of no use to a later call
                raise

    def _fetch(self, part: io.BufferedRandom) -> None:
        """Try until the file is whole and correct; wrong content is fetched once more."""
        restarted = False
        for attempt in range(ATTEMPTS):
            try:
                self._request(part)
                self._check(part)
            except _WrongContentError as error:
                part.truncate(0)
                if restarted:
                    raise WeightsError(f"{self.entry.url}: {error}: nothing was kept") from error
                restarted = True
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"the server says {error.code} {error.reason}"
                if error.code not in _RETRIED_STATUSES:
                    raise WeightsError(f"{self.entry.url}: {reason}") from error
                self._wait_or_fail(attempt, reason, error)
            except _NETWORK_ERRORS as error:
                reason = str(getattr(error, "reason", None) or error)
                self._wait_or_fail(attempt, reason or type(error).__name__, error)
            else:
                return
        raise MachineError(f"{self.entry.url}: given up after {ATTEMPTS} attempts")

    def _wait_or_fail(self, attempt: int, reason: str, error: Exception) -> None:
        if attempt + 1 == ATTEMPTS:
            raise MachineError(
                f"{self.entry.url}: {reason}, {ATTEMPTS} times; "
                "run it again to go on from where it stopped"
            ) from error
        self.wait(2.0**attempt)

    def _request(self, part: io.BufferedRandom) -> None:
        """Ask for the missing bytes, and append them.

        A server that does not support ranges sends the whole file again.
        """
        assert self.entry.url is not None
        have = part.seek(0, 2)
        if have and have == self.entry.size_bytes:
            return
        headers = {"User-Agent": f"streamproc/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        request = urllib.request.Request(self.entry.url, headers=headers)
        try:
            response = urllib.request.urlopen(request, timeout=self.timeout_seconds)
        except urllib.error.HTTPError as error:
            if have and error.code == _RANGE_NOT_SATISFIABLE:
                # There are no more bytes: the file is whole or another one. The hash will tell.
                error.close()
                return
            raise
        with response:
            self._receive(response, part, have)

    def _receive(
        self, response: http.client.HTTPResponse, part: io.BufferedRandom, have: int
    ) -> None:
        if response.status == _PARTIAL_CONTENT:
            content_range = response.headers.get("Content-Range", "")
            if not content_range.startswith(f"bytes {have}-"):
                raise _WrongContentError("the server sent another range than it was asked for")
        else:
            part.truncate(0)
            have = 0
        self._etag = _strong_etag(response)
        total = self.entry.size_bytes or _total_bytes(response, have)
        limit = self.entry.size_bytes or MAX_BYTES
        self.progress(have, total)
        while chunk := _read(response):
            have += len(chunk)
            if have > limit:
                raise _WrongContentError(f"expected {limit} bytes at most, got more")
            part.write(chunk)
            self.progress(have, total)
        part.flush()
        if total is not None and have < total:
            raise ConnectionError(f"cut off after {have} of {total} bytes")

    def _check(self, part: io.BufferedRandom) -> None:
        part.seek(0)
        found = hashlib.file_digest(part, "sha256").hexdigest()
        if found != self.entry.sha256:
            raise _WrongContentError(f"expected sha256 {self.entry.sha256[:8]}, got {found[:8]}")


def _strong_etag(response: http.client.HTTPResponse) -> str | None:
    """Return the ETag unless it is weak: a weak one does not promise equal bytes."""
    etag = response.headers.get("ETag")
    if etag is None or etag.startswith("W/"):
        return None
    return etag


def _total_bytes(response: http.client.HTTPResponse, have: int) -> int | None:
    rest = response.headers.get("Content-Length", "")
    return have + int(rest) if rest.isdigit() else None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    # Some network errors are plain OSErrors, which would be taken for the disk's.
    except OSError as error:
        raise ConnectionError(str(error)) from error
