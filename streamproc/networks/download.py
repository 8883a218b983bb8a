"""Fetching the weights of a manifest entry: resumed where it was cut off, and never under their name unless checked."""

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

    Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where that is known

ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
MAX_BYTES = 1024**3  # of a file whose size the manifest does not know
_CHUNK_BYTES = 256 * 1024
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}


class _WrongContentError(Exception):
    """What came is not the file that the manifest names."""


@dataclass(slots=True)
class Download:
    """One file on its way into `folder`.

    Made by `streamproc models pull`; one process at a time a file.

    What has come lies in `<file_name>.part`, which a later call goes on with. It gets the entry's
    name only when its sha256 is the entry's. `wait` sleeps between attempts; tests pass their own.
    """

    entry: ModelEntry
    folder: Path
    progress: Progress = lambda _done, _total: None
    timeout_seconds: float = TIMEOUT_SECONDS
    wait: Callable[[float], None] = time.sleep
    _etag: str | None = field(default=None, init=False)

    def run(self) -> Path:
        """Fetch, and return the file's path.

        Raises WeightsError where the server has no such file or another one, MachineError where
        network or disk fail ATTEMPTS times.
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
                path.unlink(missing_ok=True)  # what it holds is of no use to a later call
                raise

    def _fetch(self, part: io.BufferedRandom) -> None:
        """Try until the file is whole and right; content that is wrong is fetched anew once."""
        started_anew = False
        for attempt in range(ATTEMPTS):
            try:
                self._request(part)
                self._check(part)
            except _WrongContentError as error:
                part.truncate(0)
                if started_anew:
                    raise WeightsError(f"{self.entry.url}: {error}: nothing was kept") from error
                started_anew = True
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _WORTH_RETRYING:
                    raise WeightsError(
                        f"{self.entry.url}: the server says {error.code} {error.reason}"
                    ) from error
                self._wait_or_fail(attempt, f"the server says {error.code} {error.reason}", error)
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                TimeoutError,
                ConnectionError,
            ) as error:
                reason = getattr(error, "reason", None) or error
                self._wait_or_fail(attempt, str(reason) or type(error).__name__, error)
            else:
                return
        raise MachineError(f"{self.entry.url}: given up after {ATTEMPTS} attempts")

    def _wait_or_fail(self, attempt: int, reason: str, error: Exception) -> None:
        if attempt + 1 == ATTEMPTS:
            raise MachineError(
                f"{self.entry.url}: {reason}, {ATTEMPTS} times; run it again to go on from where it stopped"
            ) from error
        self.wait(2.0**attempt)

    def _request(self, part: io.BufferedRandom) -> None:
        """Ask for what is missing, and append it; a server that knows no ranges sends everything again."""
        assert self.entry.url is not None
        have = part.seek(0, 2)
        if have and have == self.entry.size_bytes:
            return
        headers = {"User-Agent": f"streamproc/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        request = urllib.request.Request(self.entry.url, headers=headers)  # noqa: S310 - the manifest admits http(s) alone
        try:
            response = urllib.request.urlopen(request, timeout=self.timeout_seconds)  # noqa: S310 - as above
        except urllib.error.HTTPError as error:
            if (
                have and error.code == _RANGE_NOT_SATISFIABLE
            ):  # it has no more: whole, or another file; the hash says
                error.close()
                return
            raise
        with response:
            self._receive(response, part, have)

    def _receive(
        self, response: http.client.HTTPResponse, part: io.BufferedRandom, have: int
    ) -> None:
        if response.status == _PARTIAL:
            expected = f"bytes {have}-"
            if not (response.headers.get("Content-Range") or "").startswith(expected):
                raise _WrongContentError("the server sent another range than it was asked for")
        else:
            part.truncate(0)
            have = 0
        etag = response.headers.get("ETag")
        self._etag = (
            None if etag is None or etag.startswith("W/") else etag
        )  # a weak one promises no equal bytes
        rest = response.headers.get("Content-Length")
        total = self.entry.size_bytes or (
            have + int(rest) if rest is not None and rest.isdigit() else None
        )
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


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except OSError as error:  # some come as plain OSErrors, which would be taken for the disk's
        raise ConnectionError(str(error)) from error
