"""Reads the one kind of pickle that is admitted: an npz of numpy arrays, dicts, lists and plain numbers and strings.

`canonical_persons.npz` is a pickle inside an npz, and a pickle is a program. Only numpy's array, dtype and scalar
constructors may be called (under both of their module names), and declared sizes are capped before memory is taken.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from streamproc.errors import TracksError

if TYPE_CHECKING:
    from pathlib import Path

_PLAIN_DTYPE = re.compile(r"[<>|=]?([biuf][1248]|O8?|[US]\d{1,3})")
MAX_MEMBER_BYTES = 512 * 1024 * 1024
MAX_ITEMS = 50_000_000
"""Numbers in one array: 23 days of one person at 25 boxes a second."""


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read every array of an npz file by name, object arrays through the restricted unpickler; raises TracksError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _read_member(archive, info, path) for info in archive.infolist()
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
    except Exception as error:  # a hostile pickle can make numpy raise anything (KeyError, TypeError, MemoryError …)
        raise TracksError(f"{path}: its pickle is malformed ({type(error).__name__}: {_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray[Any, Any]:
    if info.file_size > MAX_MEMBER_BYTES:
        raise TracksError(f"{path}: {info.filename} unpacks to {info.file_size} bytes, more than {MAX_MEMBER_BYTES}")
    with archive.open(info) as member:
        data = member.read(MAX_MEMBER_BYTES + 1)
    file = io.BytesIO(data)
    version = npy_format.read_magic(file)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if _items(shape) > MAX_ITEMS:
        raise TracksError(f"{path}: {info.filename} declares the shape {shape}, more than {MAX_ITEMS} items")
    if dtype.hasobject:
        array = _Unpickler(file).load()
        if not isinstance(array, np.ndarray):
            raise TracksError(f"{path}: expected an array of objects in {info.filename}, got {type(array).__name__}")
        return array
    if dtype.itemsize * _items(shape) > len(data):
        raise TracksError(f"{path}: {info.filename} declares the shape {shape} but holds only {len(data)} bytes")
    return npy_format.read_array(io.BytesIO(data), allow_pickle=False)


def _items(shape: object) -> int:
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"expected a shape, got {shape!r:.80}")
    return math.prod(shape)


class _DtypeSpec:
    """Stands for a dtype while the pickle is read: numpy's own `dtype.__setstate__` believes flags that it must not."""

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or not _PLAIN_DTYPE.fullmatch(spec):
            raise pickle.UnpicklingError(f"the number type {spec!r:.80} is not admitted")
        self.dtype: np.dtype[Any] = np.dtype(spec)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"expected a byte order in a number type's state, got {state!r:.80}")
        self.dtype = self.dtype.newbyteorder(order)


class _GuardedArray(np.ndarray):
    """An array that checks its declared shape against the data at hand before numpy takes memory for it."""

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401 - whatever the pickle holds
        version, shape, spec, fortran, data = state
        if not isinstance(spec, _DtypeSpec) or isinstance(data, list) is not spec.dtype.hasobject:
            raise pickle.UnpicklingError("expected an array of plain numbers, or of objects as a list")
        length = len(data) if isinstance(data, list) else len(data) // spec.dtype.itemsize
        if length != _items(shape):
            raise pickle.UnpicklingError(f"an array declares the shape {shape!r:.80}, which its data do not have")
        super().__setstate__((version, shape, spec.dtype, bool(fortran), data))  # type: ignore[arg-type] # the stub wants numpy.bool, which numpy refuses


def _checked_reconstruct(subtype: object, shape: object, type_code: object) -> np.ndarray[Any, Any]:
    if subtype is not np.ndarray or _items(shape) > 1 or type_code not in (b"b", "b"):
        raise pickle.UnpicklingError("expected numpy's own way of making an empty array")
    return _GuardedArray((0,), np.int8)


def _checked_scalar(dtype: object, data: object = b"") -> object:
    if not isinstance(dtype, _DtypeSpec) or dtype.dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("expected a number as numpy's scalar")
    return np.frombuffer(data, dtype.dtype, 1)[0]


def _checked_frombuffer(buffer: object, dtype: object, shape: object, order: object) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _DtypeSpec) or dtype.dtype.hasobject or order not in ("C", "F"):
        raise pickle.UnpicklingError("expected an array of plain numbers")
    _items(shape)
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return] # numpy checks


_ADMITTED = {
    ("multiarray", "_reconstruct"): _checked_reconstruct,
    ("multiarray", "scalar"): _checked_scalar,
    ("numeric", "_frombuffer"): _checked_frombuffer,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if module == "numpy" and name == "ndarray":
            return np.ndarray
        if module == "numpy" and name == "dtype":
            return _DtypeSpec
        root, _, leaf = module.rpartition(".")
        if root in ("numpy.core", "numpy._core") and (leaf, name) in _ADMITTED:
            return _ADMITTED[leaf, name]
        raise pickle.UnpicklingError(
            f"it wants to call {module}.{name}, which track files have no need of; nothing was run. "
            "If you trust its maker, save the tracks as MOT text or as streamproc's npz"
        )
