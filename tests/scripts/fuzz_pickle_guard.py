"""Gives many pickles to the guard in this one process: a plain value or a refusal, nothing else.

Arguments: how many. Prints the most memory used (MiB) and the longest time of one (s).
"""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.errors import TracksError
from streamproc.tracks import pickle_guard

MAX_SECONDS = 2.0
OPCODES = [
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy._core.multiarray\nscalar\n", b"cnumpy._core.numeric\n_frombuffer\n", b"cos\nsystem\n",
    b"\x8c\x05numpy\x8c\x07ndarray\x93", b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8",
    b"X\x01\x00\x00\x00<", b"C\x08AAAAAAAA", b"C\x01b", b"K\x01", b"K\x00", b"M\xff\xff",
    b"J\xff\xff\xff\xff", b"I7\n", b"I01\n", b"L5L\n", b"F1.5\n", b"G" + bytes(8), b"Va\n",
    b"\x8a\x09" + b"\xff" * 9, b"\x8b\xff\xff\xff\x7f", b"(", b"t", b"l", b"d", b"R", b"b", b"\x81",
    b"o", b"N", b"a", b"e", b"s", b"u", b"0", b"1", b"2", b"2\x86", b"q\x00", b"h\x00", b"h\x01",
    b"r\xff\xff\xff\x0f", b"p268435456\n", b"j\xff\xff\xff\x0f", b"\x94", b"\x85", b"\x86", b"\x87",
    b"}", b"]", b")", b"\x88", b"\x89", b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8,
    b"\x96" + b"\x00" * 5 + b"\x01\x00\x00", b"\x95" + b"\xff" * 8, b"\x97", b"P1\n", b"Q",
    b"\x82\x01",
    b"\x8f", b"\x90", b"\x91", b"\x92", b"ios\nsystem\n",
]  # fmt: skip
REAL = [
    pickle.dumps(np.array([{"person_id": 1, "bboxes": np.zeros((2, 4), "<f4")}, None], object), n)
    for n in (3, 4, 5)
]
NESTED = b"]" + b"2\x86" * 60 + b"}2K\x01s."
SHARED = b"(" + b"(l" + b"q\x00(" + b"h\x00" * 50 + b"l" + b"q\x00(" + b"h\x00" * 50 + b"l."


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real pickle with some bytes changed."""
    data = bytearray(draw(st.sampled_from([*REAL, NESTED, SHARED])))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


PICKLES = (
    st.lists(st.sampled_from(OPCODES), max_size=60).map(lambda parts: b"".join(parts) + b".")
    | damaged()
    | st.binary(max_size=200)
)


def is_plain(value: object) -> bool:
    """Whether a value is made of plain values and arrays of numbers alone."""
    if isinstance(value, dict):
        return is_plain(list(value.keys())) and is_plain(list(value.values()))
    if isinstance(value, list | tuple):
        return all(is_plain(member) for member in value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufUS"
    return value is None or type(value) in (bool, int, float, str, bytes)


def peak_mib() -> int:
    """Return the peak memory of this program; `getrusage` counts that of the parent before exec."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    raise SystemExit("no VmHWM in /proc/self/status")


def main() -> None:
    """Give `count` pickles to the guard."""
    longest = 0.0

    @settings(
        max_examples=int(sys.argv[1]),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(PICKLES, st.booleans())
    def give(pickled: bytes, as_array: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        nonlocal longest
        start = time.perf_counter()
        if as_array:  # what follows is then the array's list of objects
            pickled = REAL[0][: REAL[0].index(b"]")] + pickled
        try:
            array = pickle_guard.read_object_array(memoryview(pickled), "persons", Path("p.npz"))
            assert is_plain(array.tolist()), pickled
        except (TracksError, ValueError) as error:
            assert len(str(error)) < 2000, pickled
        longest = max(longest, time.perf_counter() - start)
        assert longest < MAX_SECONDS, pickled

    give()
    for whole in REAL:
        values = pickle_guard.read_object_array(memoryview(whole), "persons", Path("p.npz"))
        assert values[0]["person_id"] == 1
    print(peak_mib(), f"{longest:.3f}")


if __name__ == "__main__":
    main()
