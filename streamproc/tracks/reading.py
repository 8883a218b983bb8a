"""Reading a track file in a child process, with limits; the parent's side of `child`.

The child is started with `subprocess` and `-m`, so it shares no memory with this process, and gets
an environment without this one's secrets. It hands back one line of JSON and plain arrays, which
are checked here before they are used.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import MachineError, TracksError
from streamproc.tracks.files import Loaded, ReadOptions
from streamproc.tracks.source import TracksFromFile
from streamproc.tracks.table import MAX_BOXES, FlatTracks

if TYPE_CHECKING:
    from streamproc.types import TrackSet

_MAX_HEADER_BYTES = 256 * 1024
_MAX_PROBLEMS = 100
_SHA256_DIGITS = 64
_REMEDY = "split the file, or save the tracks as streamproc's npz"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ", "PYTHONHOME")


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading one track file may take.

    `memory_bytes` are addresses, not pages: 10 million lines of MOT text take 2.2 GiB.
    `wall_seconds` run from the child's start; `answer_seconds` are left at least once the answer is
    asked for.
    """

    memory_bytes: int = 3 * 1024 * 1024 * 1024
    cpu_seconds: int = 60
    wall_seconds: float = 120.0
    answer_seconds: float = 10.0


def read_tracks(
    path: Path, options: ReadOptions | None = None, limits: Limits | None = None
) -> TrackSet:
    """Read a track file or folder in a child process. Raises TracksError or MachineError."""
    source = tracks_from_file(path, options, limits)
    try:
        source.begin()
        return source.load()
    finally:
        source.close()


def tracks_from_file(
    path: Path, options: ReadOptions | None = None, limits: Limits | None = None
) -> TracksFromFile:
    """Return a source of tracks that reads a file or folder in a child process."""
    reading = _Reading(path, options or ReadOptions(), limits or Limits())
    return TracksFromFile(reading.result, reading.begin, reading.close)


class _Reading:
    """One reading. `begin` and `result` are called in one thread at a time, `close` in any."""

    def __init__(self, path: Path, options: ReadOptions, limits: Limits) -> None:
        self._path = path
        self._options = options
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0
        self._is_closed = False
        self._is_asked_for = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start the child, unless that was done. Raises MachineError."""
        if self._process is not None or self._is_closed:
            return
        asked = json.dumps(
            {
                "options": asdict(self._options),
                "memory_bytes": self._limits.memory_bytes,
                "cpu_seconds": self._limits.cpu_seconds,
            }
        )
        module = "streamproc.tracks.child"
        command = [sys.executable, "-P", "-m", module, os.fspath(self._path), asked]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_environment(),
                process_group=0,  # Ctrl-C is for this process, which then ends the child
            )
        except OSError as error:
            raise MachineError(
                f"{self._path}: the process that reads tracks cannot be started: {error}"
            ) from error
        self._deadline = time.monotonic() + self._limits.wall_seconds

    def result(self) -> TrackSet:
        """Wait for the child's answer. Raises TracksError or MachineError."""
        self.begin()
        with self._lock:
            if self._is_closed:
                raise MachineError(f"{self._path}: reading the tracks was given up")
            self._is_asked_for = True
        try:
            return self._loaded().track_set(self._path, self._options)
        finally:
            self.close()

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._is_closed = True
            process = self._process
            if process is None:
                return
            if process.poll() is None:
                process.kill()
            if not self._is_asked_for:
                # Nobody reads from it, so its pipes are closed here.
                with process:
                    pass

    def _loaded(self) -> Loaded:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        self._deadline = max(self._deadline, time.monotonic() + self._limits.answer_seconds)
        with process:
            descriptor = process.stdout.fileno()
            header, rest = self._header(descriptor)
            if header is None:
                raise self._died(process)
            loaded = self._checked(header, descriptor, rest)
            process.kill()  # all has come
            return loaded

    def _header(self, descriptor: int) -> tuple[Any, bytes]:
        """Return the line of JSON, None if there is none, and what came after it."""
        data = b""
        while b"\n" not in data:
            part = self._read(descriptor, 1 << 16)
            data += part
            if not part or len(data) > _MAX_HEADER_BYTES:
                return None, b""
        line, _, rest = data.partition(b"\n")
        return json.loads(line), rest

    def _read(self, descriptor: int, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        ready, _, _ = select.select([descriptor], [], [], max(0.0, left))
        if not ready:
            self.close()
            raise TracksError(
                f"{self._path}: reading the tracks took more than "
                f"{self._limits.wall_seconds:g} s: {_REMEDY}"
            )
        return os.read(descriptor, size)

    def _checked(self, header: Any, descriptor: int, rest: bytes) -> Loaded:
        """Raise what the child says, or return the arrays, which are as they must be."""
        if "error" in header:
            raise TracksError(str(header["error"]).replace("\n", " "))
        if "machine_error" in header:
            raise MachineError(str(header["machine_error"]).replace("\n", " "))
        if "out_of_memory" in header:
            raise self._too_large()
        count = header["boxes"]
        if type(count) is not int or not 0 <= count <= MAX_BOXES:
            raise TracksError(f"{self._path}: expected at most {MAX_BOXES:,} boxes")
        arrays = self._arrays(descriptor, rest, count)
        if not _are_tracks(arrays):
            raise TracksError(f"{self._path}: the process that read the tracks gave no tracks")
        problems = list(header["problems"].items())[:_MAX_PROBLEMS]
        return Loaded(
            arrays,
            Counter({str(code): int(number) for code, number in problems}),
            tuple(str(hint) for hint in header["hints"]),
            str(header["sha256"])[:_SHA256_DIGITS],
            header["is_normalised"] is True,
        )

    def _arrays(self, descriptor: int, rest: bytes, count: int) -> FlatTracks:
        row_bytes = 8 + 8 + 16 + 4
        data = bytearray(count * row_bytes)
        if len(rest) > len(data):
            raise TracksError(f"{self._path}: the process that read the tracks said too much")
        data[: len(rest)] = rest
        filled = len(rest)
        view = memoryview(data)
        while filled < len(data):
            part = self._read(descriptor, min(len(data) - filled, 1 << 20))
            if not part:
                raise self._died(self._process)
            view[filled : filled + len(part)] = part
            filled += len(part)
        return FlatTracks(
            np.frombuffer(data, "<i8", count),
            np.frombuffer(data, "<i8", count, count * 8),
            np.frombuffer(data, "<f4", count * 4, count * 16).reshape(-1, 4),
            np.frombuffer(data, "<f4", count, count * 32),
        )

    def _died(self, process: subprocess.Popen[bytes] | None) -> TracksError | MachineError:
        """Say why a child gave no answer."""
        code = None if process is None else process.wait()
        if self._is_closed:
            return MachineError(f"{self._path}: reading the tracks was given up")
        if code == -signal.SIGXCPU:
            return TracksError(
                f"{self._path}: reading the tracks took more than {self._limits.cpu_seconds} s of "
                f"processor time: {_REMEDY}"
            )
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return TracksError(
                f"{self._path}: the process that read the tracks was ended by {name}: the file may "
                "be malformed, or the machine out of memory"
            )
        return MachineError(
            f"{self._path}: the process that reads tracks ended with exit code {code}: "
            f"try {sys.executable} -P -m streamproc.tracks.child"
        )

    def _too_large(self) -> TracksError:
        return TracksError(
            f"{self._path}: reading the tracks takes more than "
            f"{self._limits.memory_bytes >> 20} MiB of memory: {_REMEDY}"
        )


def _are_tracks(tracks: FlatTracks) -> bool:
    """Whether arrays hold what `types.Track` promises."""
    ids = tracks.person_ids
    frames = tracks.frame_indices
    same = ids[1:] == ids[:-1]
    left, top, right, bottom = tracks.boxes_xyxy.T
    confidences = tracks.confidences
    return bool(
        (ids[1:] >= ids[:-1]).all()
        and (frames[1:][same] > frames[:-1][same]).all()
        and (frames >= 0).all()
        and np.isfinite(tracks.boxes_xyxy).all()
        and ((right > left) & (bottom > top)).all()
        and ((confidences >= 0) & (confidences <= 1)).all()
    )


def _environment() -> dict[str, str]:
    """What the child needs to import numpy and this package, and no more."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    root = Path(__file__).parents[2]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root.name not in ("site-packages", "dist-packages"):
        # Installed packages are found anyway, and must not come before the standard library.
        paths.append(str(root))
    if paths:
        kept["PYTHONPATH"] = os.pathsep.join(paths)
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
