"""Reads npz files, and the one kind of pickle that is admitted in them: plain values and arrays.

`canonical_persons.npz` is a pickle inside an npz, and a pickle is a program. It may name numpy's
array, dtype and scalar constructors (under both of their module names) and gets functions of this
module for them, which check sizes before memory is taken. What it describes is then turned into
plain values; nothing callable is ever returned.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.lib import format as npy_format

from streamproc.errors import TracksError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PLAIN_DTYPE = re.compile(r"[<>|=]?([biuf][1248]|O8?|[US]\d{1,3})")
MAX_MEMBER_BYTES = 512 * 1024 * 1024
MAX_ITEMS = 50_000_000
"""Numbers in one array: 23 days of one person at 25 boxes a second."""
_MAX_DEPTH = 6
"""An array of dicts of lists of boxes needs four."""


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read every array of an npz file by name; raises TracksError.

    Object arrays go through the restricted unpickler.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _read_member(archive, info, path)
                for info in archive.infolist()
            }
    except TracksError:
        raise
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise TracksError(f"{path}: cannot be read as npz ({_one_line(error)})") from error
    except Exception as error:  # a hostile pickle can make numpy raise anything
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise TracksError(f"{path}: its pickle is malformed ({reason})") from error


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path
) -> np.ndarray[Any, Any]:
    if info.file_size > MAX_MEMBER_BYTES:
        raise TracksError(
            f"{path}: {info.filename} unpacks to {info.file_size} bytes, "
            f"more than {MAX_MEMBER_BYTES}"
        )
    with archive.open(info) as member:
        data = member.read(MAX_MEMBER_BYTES + 1)
    file = io.BytesIO(data)
    version = npy_format.read_magic(file)
    read_header = (
        npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if _items(shape) > MAX_ITEMS:
        raise TracksError(
            f"{path}: {info.filename} declares the shape {shape}, more than {MAX_ITEMS} items"
        )
    if dtype.hasobject:
        return _object_array(_Unpickler(file).load(), info.filename, path)
    if dtype.itemsize * _items(shape) > len(data):
        raise TracksError(
            f"{path}: {info.filename} declares the shape {shape} but holds only {len(data)} bytes"
        )
    return npy_format.read_array(io.BytesIO(data), allow_pickle=False)


def _object_array(unpickled: object, name: str, path: Path) -> np.ndarray[Any, Any]:
    """Return the object array (n,) that `unpickled` describes.

    It is made of plain values and arrays of numbers alone.
    """
    objects = unpickled.value if isinstance(unpickled, _ArrayNode) else None
    if not isinstance(objects, list):
        raise TracksError(
            f"{path}: expected an array of objects in {name}, got {type(unpickled).__name__}"
        )
    plain, _ = _Plain().of(objects)
    array = np.empty(len(objects), object)
    for position, item in enumerate(cast("list[object]", plain)):
        array[position] = item
    return array


def _items(shape: object) -> int:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"expected a shape, got {shape!r:.80}")
    return math.prod(shape)


class _Marker:
    """Stands for `numpy.ndarray`: constructors compare it; it cannot be called or given state."""

    __slots__ = ()


_NDARRAY = _Marker()


class _DtypeNode:
    """A number type as the pickle describes it.

    numpy's own `dtype.__setstate__` believes flags that it must not.
    """

    __slots__ = ("dtype",)

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or not _PLAIN_DTYPE.fullmatch(spec):
            raise pickle.UnpicklingError(f"the number type {spec!r:.80} is not admitted")
        self.dtype: np.dtype[Any] = np.dtype(spec)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(
                f"expected a byte order in a number type's state, got {state!r:.80}"
            )
        self.dtype = self.dtype.newbyteorder(order)


class _ArrayNode:
    """An array as the pickle describes it.

    `value` is built here from the bytes at hand, or is the list of objects.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | list[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or self.value is not None:  # noqa: PLR2004 - numpy's five
            raise pickle.UnpicklingError("expected an array's state once, as numpy writes it")
        _, shape, spec, fortran, data = state
        if not isinstance(spec, _DtypeNode):
            raise pickle.UnpicklingError(
                "expected an array of plain numbers, or of objects as a list"
            )
        if not spec.dtype.hasobject:
            self.value = _plain_array(data, spec, shape, "F" if fortran else "C")
        elif isinstance(data, list) and len(data) == _items(shape):
            self.value = data
        else:
            raise pickle.UnpicklingError(
                f"an array declares the shape {shape!r:.80}, which its data do not have"
            )


def _plain_array(data: object, spec: object, shape: object, order: object) -> np.ndarray[Any, Any]:
    if (
        not isinstance(spec, _DtypeNode)
        or spec.dtype.hasobject
        or not isinstance(data, bytes | bytearray)
    ):
        raise pickle.UnpicklingError("expected an array of plain numbers as bytes")
    if order not in ("C", "F") or _items(shape) * spec.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(
            f"an array declares the shape {shape!r:.80}, which its data do not have"
        )
    return np.frombuffer(bytes(data), spec.dtype).reshape(shape, order=order)


def _reconstruct(subtype: object, shape: object, type_code: object) -> _ArrayNode:
    if subtype is not _NDARRAY or _items(shape) > 1 or type_code not in (b"b", "b"):
        raise pickle.UnpicklingError("expected numpy's own way of making an empty array")
    return _ArrayNode()


def _scalar(spec: object, data: object = b"") -> object:
    if not isinstance(spec, _DtypeNode) or spec.dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("expected a number as numpy's scalar")
    return np.frombuffer(data, spec.dtype, 1)[0].item()


def _frombuffer(data: object, spec: object, shape: object, order: object) -> _ArrayNode:
    node = _ArrayNode()
    node.value = _plain_array(data, spec, shape, order)
    return node


class _Constructor:
    """What a pickle may call.

    Not the function itself: a pickle can set a function's defaults and code.
    """

    __slots__ = ("_function",)
    _function: Callable[..., object]

    def __init__(self, function: Callable[..., object]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"a constructor's {name!r:.80} is not to be changed")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"a constructor takes no state, got {state!r:.80}")


_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Constructor(_DtypeNode),
    ("multiarray", "_reconstruct"): _Constructor(_reconstruct),
    ("multiarray", "scalar"): _Constructor(_scalar),
    ("numeric", "_frombuffer"): _Constructor(_frombuffer),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        root, _, leaf = module.rpartition(".")
        key = (leaf if root in ("numpy.core", "numpy._core") else module, name)
        if key in _ADMITTED and (module == "numpy" or root):
            return _ADMITTED[key]
        raise pickle.UnpicklingError(
            f"it wants to call {module}.{name}, which track files have no need of; nothing was "
            "run. If you trust its maker, save the tracks as MOT text or as streamproc's npz"
        )


class _Plain:
    """Turns what was unpickled into plain values.

    These are dict, list, tuple, str, bytes, numbers, None, and arrays of numbers. Anything else is
    refused, and so are values that contain themselves, lie deeper than `_MAX_DEPTH`, or are more
    than `MAX_ITEMS` once shared parts are counted at each place where they stand: a kilobyte of
    shared lists can stand for any number of items.
    """

    def __init__(self) -> None:
        self._done: dict[int, tuple[object, int]] = {}

    def of(self, value: object, depth: int = 0) -> tuple[object, int]:
        """Return the plain value and how many items it has."""
        if isinstance(value, _ArrayNode):
            value = value.value
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value, 1
        if type(value) is np.ndarray:
            return value, 1
        if depth == _MAX_DEPTH or type(value) not in (dict, list, tuple):
            raise pickle.UnpicklingError(
                f"expected arrays, lists, dicts and plain values, got {type(value).__name__}"
            )
        if id(value) not in self._done:
            self._done[id(value)] = self._container(value, depth + 1)
        return self._done[id(value)]

    def _container(self, value: Any, depth: int) -> tuple[object, int]:
        members = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        plain: list[object] = []
        count = 1
        for member in members:
            item, items = self.of(member, depth)
            plain.append(item)
            count += items
            if count > MAX_ITEMS:
                raise pickle.UnpicklingError(f"it holds more than {MAX_ITEMS} items")
        if isinstance(value, dict):
            return dict(zip(plain[: len(value)], plain[len(value) :], strict=True)), count
        return type(value)(plain), count
