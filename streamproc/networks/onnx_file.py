"""Refuses ONNX files that name other files.

A tensor of an ONNX file may lie in a file of its own, which the sha256 of the first does not cover
and whose path its maker chose. The format is protobuf (https://protobuf.dev/programming-guides/
encoding), with the field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamproc.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_ONNX_BYTES = 2**30

_VARINT = 0
_FIXED64 = 1
_LENGTH_DELIMITED = 2
_FIXED32 = 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_DEPTH = 64
"""Of graphs within graphs; Python's own stack allows more."""

_TENSOR = "tensor"
# By kind of message: the fields that lead to tensors, and what each holds.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {
        5: _TENSOR,
        6: "graph",
        10: _TENSOR,
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: _TENSOR, 2: _TENSOR},
}
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14


def check_self_contained(path: Path) -> None:
    """Raise WeightsError where a tensor is in another file, or the file is no ONNX."""
    try:
        if path.stat().st_size > MAX_ONNX_BYTES:
            raise WeightsError(f"{path}: expected an ONNX file of at most 1 GiB")
        content = memoryview(path.read_bytes())
        is_external = _names_a_file(content, "model", _MAX_DEPTH)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{path}: expected an ONNX file ({error})") from error
    if is_external:
        raise WeightsError(
            f"{path}: some of its numbers are in another file, which is not read: export it again "
            "with all of them in one file"
        )


def _names_a_file(message: memoryview, kind: str, depth: int) -> bool:
    if depth == 0:
        raise ValueError("graphs within graphs, too deep")
    for number, value in _fields(message):
        if kind == _TENSOR:
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1):
                return True
        elif number in _FIELDS[kind] and isinstance(value, memoryview):
            found = _names_a_file(value, _FIELDS[kind][number], depth - 1)
            if found:
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an int, or the bytes of what has a length."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield key >> 3, value
        elif wire_type == _LENGTH_DELIMITED:
            length, position = _varint(message, position)
            end = position + length
            if end > len(message):
                raise ValueError("it is cut off")
            yield key >> 3, message[position:end]
            position = end
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        else:
            raise ValueError("it is no protobuf")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number that begins at `position`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the bit that says whether more follow
            return value, position
    raise ValueError("it is no protobuf")
