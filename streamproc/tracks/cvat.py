"""CVAT's "CVAT for video 1.1": XML with the tracks' boxes in key frames, frames from 0.

The layout is that of https://docs.cvat.ai/docs/manual/advanced/xml_format/. `<track id label>`
holds `<box frame outside xtl ytl xbr ybr>`. Between two boxes a person moves in a straight line;
from a box with `outside="1"` on the person is not in the picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.parsers import expat

from streamproc.errors import TracksError
from streamproc.tracks.delimited import ClassFilter, decimal, whole
from streamproc.tracks.interpolation import KeyFrames, table_of

if TYPE_CHECKING:
    from collections import Counter

    from streamproc.tracks.content import Content
    from streamproc.tracks.table import BoxTable

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_CHUNK_BYTES = 1024 * 1024


def is_cvat(content: Content) -> bool:
    """Whether it is XML with CVAT's first element."""
    return content.head.lstrip().startswith("<") and "<annotations" in content.head


def read(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read CVAT's tracks."""
    wanted = ClassFilter(object_class)
    parser = _Parser(content, wanted)
    parser.run(content.text)
    problems["boxes-other-class"] += wanted.left_out
    return table_of(parser.tracks, content.path, wanted.seen)


class _Parser:
    """Collects the tracks while expat reads."""

    def __init__(self, content: Content, wanted: ClassFilter) -> None:
        self.tracks: list[KeyFrames] = []
        self._path = content.path
        self._wanted = wanted
        self._track: KeyFrames | None = None
        self._label = ""
        self._expat = expat.ParserCreate()
        self._expat.StartDoctypeDeclHandler = self._refuse_document_type
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end

    def run(self, text: bytes) -> None:
        """Read all of a text. Raises TracksError."""
        try:
            for start in range(0, len(text), _CHUNK_BYTES):
                self._expat.Parse(text[start : start + _CHUNK_BYTES], False)
            self._expat.Parse(b"", True)
        except expat.ExpatError as error:
            raise TracksError(f"{self._path}: cannot be read as XML ({error})") from error

    def _refuse_document_type(self, *_: object) -> None:
        raise TracksError(
            f"{self._path}: line {self._expat.CurrentLineNumber}: a document type is not admitted "
            "in tracks; nothing that it names was read"
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        try:
            if name == "track":
                self._track = KeyFrames(_integer(attributes, "id"))
                self._label = attributes.get("label", "")
                self.tracks.append(self._track)
            elif name == "box" and self._track is not None and self._wanted.keeps(self._label):
                self._add(self._track, attributes)
        except (KeyError, ValueError) as error:
            raise TracksError(
                f"{self._path}: line {self._expat.CurrentLineNumber}: expected track id, and box "
                f"frame, xtl, ytl, xbr, ybr ({error})"
            ) from error

    def _add(self, track: KeyFrames, attributes: dict[str, str]) -> None:
        frame = _integer(attributes, "frame")
        box = tuple(decimal(attributes[side]) for side in _SIDES)
        track.add(frame, box, is_shown=attributes.get("outside", "0") != "1")

    def _end(self, name: str) -> None:
        if name == "track":
            self._track = None


def _integer(attributes: dict[str, str], name: str) -> int:
    value = whole(attributes[name])
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} is {attributes[name][:40]!r}")
    return value
