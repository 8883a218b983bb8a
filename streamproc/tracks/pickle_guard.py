"""Reads npz files, and the one kind of pickle that is admitted in them: plain values and arrays.

`canonical_persons.npz` is a pickle inside an npz, and a pickle is a program. This module carries
out the few instructions that plain values and numpy's arrays need (the opcodes are those of
Python's `pickletools`), and Python's own unpickler is not used. Nothing in a pickle can be called:
numpy's array, dtype and scalar constructors are names, and what is asked of them is checked and
then built here. Memory is taken only for what the file holds.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from streamproc.errors import TracksError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    Array = np.ndarray[Any, Any]

MAX_TOTAL_BYTES = 512 * 1024 * 1024
"""All members that are read, unpacked."""
MAX_ITEMS = 50_000_000
"""Numbers in one file, shared ones counted wherever they stand: 8 million boxes."""
_MAX_DEPTH = 6
"""An array of dicts of lists of boxes needs four."""
_PLAIN_DTYPE = re.compile(r"[<>|=]?([biuf][1248]|O8?|[US]\d{1,3})")
_MAX_NAME_BYTES = 200
_MAX_WHOLE_BYTES = 64


class GuardError(ValueError):
    """What a pickle asks for is not admitted, or makes no sense."""


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """Read the arrays of an npz file that have one of these names (None: all); raises TracksError.

    An object array (n,) holds plain values and arrays of numbers: nothing callable.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = _wanted(archive, names, path)
            return {name: _read_member(archive, info, path) for name, info in wanted.items()}
    except (TracksError, MemoryError):
        raise
    except (
        zipfile.BadZipFile,
        GuardError,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise TracksError(f"{path}: cannot be read as npz ({_one_line(error)})") from error
    except Exception as error:  # zlib, bz2 and lzma have errors of their own
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise TracksError(f"{path}: cannot be read as npz ({reason})") from error


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0][:500]


def _wanted(
    archive: zipfile.ZipFile, names: Collection[str] | None, path: Path
) -> dict[str, zipfile.ZipInfo]:
    """Find the members by name; nothing else of the file is unpacked."""
    wanted: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if names is not None and name not in names:
            continue
        if name in wanted:
            raise TracksError(f"{path}: it holds {info.filename!r:.80} twice")
        wanted[name] = info
        total += info.file_size
        if total > MAX_TOTAL_BYTES:
            raise TracksError(
                f"{path}: with {info.filename!r:.80} it unpacks to {total} bytes, "
                f"more than {MAX_TOTAL_BYTES}"
            )
    return wanted


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
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
        return read_object_array(memoryview(data)[file.tell() :], info.filename, path)
    if dtype.itemsize * _items(shape) > len(data):
        raise TracksError(
            f"{path}: {info.filename} declares the shape {shape} but holds only {len(data)} bytes"
        )
    return npy_format.read_array(io.BytesIO(data), allow_pickle=False)


def read_object_array(pickled: memoryview, name: str, path: Path) -> Array:
    """Return the object array (n,) that a pickle describes, made of plain values."""
    described = _Machine(pickled).run()
    objects = described.value if isinstance(described, _ArrayNode) else None
    if not isinstance(objects, list):
        raise TracksError(
            f"{path}: expected an array of objects in {name}, got {type(described).__name__}"
        )
    plain, _ = _Plain().of(objects)
    array = np.empty(len(objects), object)
    for position, item in enumerate(plain):
        array[position] = item
    return array


def _items(shape: object) -> int:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise GuardError(f"expected a shape, got {_shown(shape)}")
    return math.prod(shape)


def _shown(value: object) -> str:
    """Show a value in an error; the text of nested tuples that share parts may have no end."""
    flat = value if isinstance(value, tuple) else (value,)
    if all(type(part) in (int, float, bool, str, bytes, type(None)) for part in flat):
        return f"{value!r:.80}"
    return type(value).__name__


class _Name:
    """Stands for a function or class of numpy's that a pickle names."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _Mark:
    __slots__ = ()


class _DtypeNode:
    """A number type as the pickle describes it."""

    __slots__ = ("dtype",)

    def __init__(self, spec: object, *_: object) -> None:
        if not isinstance(spec, str) or not _PLAIN_DTYPE.fullmatch(spec):
            raise GuardError(f"the number type {_shown(spec)} is not admitted")
        self.dtype: np.dtype[Any] = np.dtype(spec)

    def set_state(self, state: object) -> None:
        """Take numpy's state of a dtype; only the byte order is used."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise GuardError(f"expected a byte order in a number type's state, got {_shown(state)}")
        self.dtype = self.dtype.newbyteorder(order)


class _ArrayNode:
    """An array as the pickle describes it: numbers built from its bytes, or the list of objects."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Array | list[Any] | None = None

    def set_state(self, state: object) -> None:
        """Take numpy's state of an array, once: version, shape, dtype, is Fortran, data."""
        match state, self.value:
            case (_, tuple() as shape, _DtypeNode() as spec, fortran, data), None:
                pass
            case _:
                raise GuardError("expected an array's state once, as numpy writes it")
        if not spec.dtype.hasobject:
            self.value = _plain_array(data, spec, shape, "F" if fortran else "C")
        elif isinstance(data, list) and len(data) == _items(shape):
            self.value = data
        else:
            raise GuardError(
                f"an array declares the shape {_shown(shape)}, which its data do not have"
            )


def _plain_array(data: object, spec: object, shape: object, order: object) -> Array:
    if (
        not isinstance(spec, _DtypeNode)
        or spec.dtype.hasobject
        or not isinstance(data, bytes | bytearray)
    ):
        raise GuardError("expected an array of plain numbers as bytes")
    if order not in ("C", "F") or _items(shape) * spec.dtype.itemsize != len(data):
        raise GuardError(f"an array declares the shape {_shown(shape)}, which its data do not have")
    return np.frombuffer(bytes(data), spec.dtype).reshape(shape, order=order)


def _reconstruct(subtype: object, shape: object, type_code: object) -> _ArrayNode:
    is_array = isinstance(subtype, _Name) and subtype.text == "ndarray"
    if not is_array or _items(shape) > 1 or type_code not in (b"b", "b"):
        raise GuardError("expected numpy's own way of making an empty array")
    return _ArrayNode()


def _scalar(spec: object, data: object = b"") -> object:
    if not isinstance(spec, _DtypeNode) or spec.dtype.hasobject or not isinstance(data, bytes):
        raise GuardError("expected a number as numpy's scalar")
    return np.frombuffer(data, spec.dtype, 1)[0].item()


def _frombuffer(data: object, spec: object, shape: object, order: object) -> _ArrayNode:
    node = _ArrayNode()
    node.value = _plain_array(data, spec, shape, order)
    return node


_BUILDERS: dict[str, Callable[..., object]] = {
    "dtype": _DtypeNode,
    "_reconstruct": _reconstruct,
    "scalar": _scalar,
    "_frombuffer": _frombuffer,
}
_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("multiarray", "_reconstruct"): "_reconstruct",
    ("multiarray", "scalar"): "scalar",
    ("numeric", "_frombuffer"): "_frombuffer",
}


def _named(module: object, name: object) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise GuardError("expected the name of a function as text")
    root, _, leaf = module.rpartition(".")
    key = (leaf if root in ("numpy.core", "numpy._core") else module, name)
    if key in _NAMES and (module == "numpy" or root):
        return _Name(_NAMES[key])
    raise GuardError(
        f"it wants to call {module:.80}.{name:.80}, which track files have no need of; nothing was "
        "run. If you trust its maker, save the tracks as MOT text or as streamproc's npz"
    )


_MARK = _Mark()
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": (), b"(": _MARK}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
_LENGTHS = {"1": "<B", "4": "<I", "8": "<Q"}
_BYTES = {b"C": "1", b"B": "4", b"\x8e": "8", b"\x96": "8"}
_TEXTS = {b"\x8c": "1", b"X": "4", b"\x8d": "8"}
_MEMO_PUTS = {b"q": "<B", b"r": "<I"}
_MEMO_GETS = {b"h": "<B", b"j": "<I"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


class _Machine:
    """Carries out a pickle: a stack, a memo, and nothing that can be called."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._other: dict[bytes, Callable[[], None]] = {
            b"\x80": self._protocol,
            b"\x95": self._frame,
            b"I": self._integer_line,
            b"L": self._integer_line,
            b"F": self._float_line,
            b"V": self._text_line,
            b"\x8a": self._long,
            b"p": self._put_line,
            b"g": self._get_line,
            b"\x94": self._memoize,
            b"]": lambda: self._stack.append([]),
            b"}": lambda: self._stack.append({}),
            b"l": lambda: self._stack.append(self._pop_to_mark()),
            b"t": lambda: self._stack.append(tuple(self._pop_to_mark())),
            b"d": self._dict,
            b"a": self._append,
            b"e": self._extend,
            b"s": self._set_item,
            b"u": self._set_items,
            b"0": self._discard,
            b"1": self._discard_to_mark,
            b"2": lambda: self._stack.append(self._top()),
            b"c": self._global,
            b"\x93": self._stack_global,
            b"R": self._reduce,
            b"b": self._build,
        }

    def run(self) -> object:
        """Return what the pickle describes. Raises GuardError."""
        while True:
            opcode = bytes(self._take(1))
            if opcode == b".":
                return self._pop()
            if not self._value(opcode):
                self._instruction(opcode)

    def _value(self, opcode: bytes) -> bool:
        """Put a value on the stack, if that is what the instruction says."""
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _NUMBERS:
            self._stack.append(self._unpack(_NUMBERS[opcode]))
        elif opcode in _BYTES:
            self._stack.append(bytes(self._counted(_BYTES[opcode])))
        elif opcode in _TEXTS:
            self._stack.append(str(self._counted(_TEXTS[opcode]), "utf-8", "surrogatepass"))
        else:
            return False
        return True

    def _instruction(self, opcode: bytes) -> None:
        if opcode in _MEMO_PUTS:
            self._memo[self._unpack(_MEMO_PUTS[opcode])] = self._top()
        elif opcode in _MEMO_GETS:
            self._get(self._unpack(_MEMO_GETS[opcode]))
        elif opcode in _TUPLES:
            self._tuple(_TUPLES[opcode])
        elif opcode in self._other:
            self._other[opcode]()
        else:
            raise GuardError(f"the pickle's instruction {opcode!r} is not admitted")

    def _take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise GuardError("the pickle ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def _unpack(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _counted(self, size: str) -> memoryview:
        return self._take(self._unpack(_LENGTHS[size]))

    def _line(self) -> str:
        near = bytes(self._data[self._at : self._at + _MAX_NAME_BYTES])
        end = near.find(b"\n")
        if end < 0:
            raise GuardError("a name or number in the pickle has no end")
        self._at += end + 1
        return near[:end].decode("utf-8")

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise GuardError("the pickle takes a value that is not there")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        del self._stack[-1]
        return value

    def _discard(self) -> None:
        if not self._stack:
            raise GuardError("the pickle takes a value that is not there")
        del self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        for position in range(len(self._stack) - 1, -1, -1):
            if self._stack[position] is _MARK:
                values = self._stack[position + 1 :]
                del self._stack[position:]
                return values
        raise GuardError("the pickle ends a group that it did not begin")

    def _discard_to_mark(self) -> None:
        self._pop_to_mark()

    def _protocol(self) -> None:
        self._take(1)

    def _frame(self) -> None:
        self._take(8)  # only says how much may be read ahead

    def _integer_line(self) -> None:
        line = self._line().removesuffix("L")
        flags = {"00": False, "01": True}
        self._stack.append(flags[line] if line in flags else int(line))

    def _float_line(self) -> None:
        self._stack.append(float(self._line()))

    def _text_line(self) -> None:
        self._stack.append(self._line().encode().decode("raw-unicode-escape"))

    def _long(self) -> None:
        data = bytes(self._counted("1"))
        if len(data) > _MAX_WHOLE_BYTES:
            raise GuardError(f"a whole number has {len(data)} bytes, more than 64 bits")
        self._stack.append(int.from_bytes(data, "little", signed=True))

    def _put_line(self) -> None:
        self._memo[int(self._line())] = self._top()

    def _get_line(self) -> None:
        self._get(int(self._line()))

    def _get(self, position: int) -> None:
        if position not in self._memo:
            raise GuardError(f"the pickle refers to a value {position} that it does not have")
        self._stack.append(self._memo[position])

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _tuple(self, size: int) -> None:
        values = [self._pop() for _ in range(size)]
        self._stack.append(tuple(reversed(values)))

    def _dict(self) -> None:
        pairs = self._pop_to_mark()
        self._stack.append(_with_items({}, pairs))

    def _append(self) -> None:
        value = self._pop()
        self._list().append(value)

    def _extend(self) -> None:
        values = self._pop_to_mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        target = self._top()
        if not isinstance(target, list):
            raise GuardError(f"expected a list to add to, got {type(target).__name__}")
        return target

    def _set_item(self) -> None:
        value = self._pop()
        key = self._pop()
        _with_items(self._top(), [key, value])

    def _set_items(self) -> None:
        pairs = self._pop_to_mark()
        _with_items(self._top(), pairs)

    def _global(self) -> None:
        module = self._line()
        self._stack.append(_named(module, self._line()))

    def _stack_global(self) -> None:
        name = self._pop()
        self._stack.append(_named(self._pop(), name))

    def _reduce(self) -> None:
        arguments = self._pop()
        function = self._pop()
        name = function.text if isinstance(function, _Name) else ""
        if name not in _BUILDERS or not isinstance(arguments, tuple):
            raise GuardError("the pickle calls what cannot be called")
        try:
            self._stack.append(_BUILDERS[name](*arguments))
        except TypeError as error:
            raise GuardError(
                f"numpy's {name} is called with other arguments than its own"
            ) from error

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if not isinstance(target, _DtypeNode | _ArrayNode):
            raise GuardError(f"expected an array to give state to, got {type(target).__name__}")
        target.set_state(state)


def _with_items(target: object, pairs: list[Any]) -> dict[Any, Any]:
    """Add pairs to a dict. Keys are text or whole numbers: the hash of others may take for ever."""
    if not isinstance(target, dict) or len(pairs) % 2:
        raise GuardError("expected a dict and pairs to add to it")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if type(key) not in (str, int, bytes):
            raise GuardError(f"expected text as a key, got {type(key).__name__}")
        target[key] = value
    return target


class _Plain:
    """Turns what a pickle describes into plain values.

    These are dict, list, tuple, str, bytes, numbers, None, and arrays of numbers. Anything else is
    refused, and so are values that contain themselves, lie deeper than `_MAX_DEPTH`, or are more
    than `MAX_ITEMS` once shared parts are counted at each place where they stand: a kilobyte of
    shared lists can stand for any number of items.
    """

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, int]] = {}

    def of(self, value: object, depth: int = 0) -> tuple[Any, int]:
        """Return the plain value and how many items it has."""
        if isinstance(value, _ArrayNode):
            value = value.value
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value, 1
        if isinstance(value, np.ndarray):
            return value, max(1, value.size)
        if depth == _MAX_DEPTH or type(value) not in (dict, list, tuple):
            raise GuardError(
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
                raise GuardError(f"it holds more than {MAX_ITEMS} items")
        if isinstance(value, dict):
            return dict(zip(plain[: len(value)], plain[len(value) :], strict=True)), count
        return type(value)(plain), count
