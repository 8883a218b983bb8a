"""The process that parses one track file: `python -m streamproc.tracks.child PATH ASKED`.

ASKED is JSON: `options` as in `files.ReadOptions`, and the limits `memory_bytes` and `cpu_seconds`.

Track files come from anywhere. Whatever a file makes numpy or Python do happens here: within limits
of memory and time, without the parent's secrets in the environment, and without holding the
parent's interpreter. To stdout goes one line of JSON, then the arrays' bytes; see `reading`, the
other side.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import threading
from pathlib import Path

from streamproc.errors import TracksError
from streamproc.tracks.files import ReadOptions, load

_MAX_ERROR = 2000
_USERS_FAULTS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


def main() -> None:
    """Read the file that the arguments name, and write what was found."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing that is printed gets between the arrays
    asked = json.loads(sys.argv[2])
    _set_limits(asked["memory_bytes"], asked["cpu_seconds"])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = Path(sys.argv[1])
    arrays: list[memoryview] = []
    try:
        loaded = load(path, ReadOptions(**asked["options"]))
        tracks = loaded.tracks
        header: dict[str, object] = {
            "boxes": len(tracks.person_ids),
            "problems": dict(loaded.problems),
            "hints": list(loaded.hints),
            "sha256": loaded.sha256,
            "is_normalised": loaded.is_normalised,
        }
        arrays = [
            memoryview(tracks.person_ids.astype("<i8").tobytes()),
            memoryview(tracks.frame_indices.astype("<i8").tobytes()),
            memoryview(tracks.boxes_xyxy.astype("<f4").tobytes()),
            memoryview(tracks.confidences.astype("<f4").tobytes()),
        ]
    except TracksError as error:
        header = {"error": _one_line(error)}
    except MemoryError:
        header = {"out_of_memory": True}
    except OSError as error:
        kind = "error" if error.errno in _USERS_FAULTS else "machine_error"
        header = {kind: f"{path}: cannot be read: {error.strerror or _one_line(error)}"}
    except Exception as error:  # noqa: BLE001 - the parent says it in one line
        header = {"error": f"{path}: cannot be read ({type(error).__name__}: {_one_line(error)})"}
    _write(out.fileno(), memoryview(json.dumps(header).encode() + b"\n"))
    for view in arrays:
        _write(out.fileno(), view)


def _write(descriptor: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(descriptor, view) :]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_ERROR] or type(error).__name__


def _set_limits(memory_bytes: int, cpu_seconds: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, hard))


def _end_with_parent() -> None:
    """Wait on stdin, which the parent holds open: it closes when the parent ends in any way."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
