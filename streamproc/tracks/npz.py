"""Tracks in npz files: `canonical_persons.npz`, and streamproc's own of flat arrays.

`canonical_persons.npz` has one key `persons`, an object array (n,) of dicts: `person_id`,
`frame_numbers` (k,) from 0, `bboxes` (k, 4) xyxy, and optional `confidences` (k,). It is a pickle,
which `pickle_guard` reads without running it.

streamproc's own has a row a box and no pickle: `person_ids` (n,), `frame_indices` (n,),
`boxes_xyxy` (n, 4), optional `confidences` (n,), `first_frame_number`, `frame_stride`, and
`format_version`, which is 1. Version 2 has `is_normalised` as well: 1 says that the boxes are
shares of the picture's width and height.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from streamproc.errors import TracksError
from streamproc.tracks.pickle_guard import read_npz
from streamproc.tracks.table import BoxTable, check_lengths

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from streamproc.tracks.content import Content
    from streamproc.types import Track

    Array = np.ndarray[Any, Any]

_FORMAT_VERSION = 1
_NORMALISED_VERSION = 2
_OWN_KEYS = ("person_ids", "frame_indices", "boxes_xyxy")
_OPTIONAL_KEYS = (
    "confidences",
    "first_frame_number",
    "frame_stride",
    "format_version",
    "is_normalised",
)
_PERSON_KEYS = ("person_id", "frame_numbers", "bboxes")


def is_canonical(content: Content) -> bool:
    """Return whether it is an npz with the key `persons`."""
    return "persons.npy" in content.members


def is_npz(content: Content) -> bool:
    """Return whether it is an npz, by its content or else by its name."""
    return content.is_zip or (not content.is_folder and content.name.lower().endswith(".npz"))


def read_canonical(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read a `canonical_persons.npz`; a person given twice is one, and counted."""
    path = content.path
    _refuse_class(path, object_class)
    persons = _arrays(content, ("persons",))["persons"]
    ids: list[Array] = []
    numbers: list[Array] = []
    boxes: list[Array] = []
    confidences: list[Array] = []
    seen: set[int] = set()
    for position, person in enumerate(np.asarray(persons).ravel().tolist()):
        row = _canonical_person(person, position, path)
        problems["ids-duplicate"] += row.person_id in seen
        seen.add(row.person_id)
        ids.append(np.full(len(row.numbers), row.person_id, np.int64))
        numbers.append(row.numbers)
        boxes.append(row.boxes)
        confidences.append(row.confidences)
    none = np.zeros(0, np.int64)
    return BoxTable(
        np.concatenate([none, *ids]),
        np.concatenate([none, *numbers]),
        np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        np.concatenate([np.zeros(0, np.float32), *confidences]),
        first_frame_number=0,
    )


def read_streamproc(
    content: Content, problems: Counter[str], /, *, object_class: int | str | None
) -> BoxTable:
    """Read streamproc's own npz."""
    del problems  # its rows are judged with those of all formats
    path = content.path
    _refuse_class(path, object_class)
    arrays = _arrays(content, _OWN_KEYS, _OPTIONAL_KEYS)
    version = _integer(arrays, "format_version", _FORMAT_VERSION, path)
    if version not in (_FORMAT_VERSION, _NORMALISED_VERSION):
        raise TracksError(
            f"{path}: it is of format version {version}, this streamproc reads versions "
            f"{_FORMAT_VERSION} and {_NORMALISED_VERSION}: upgrade streamproc"
        )
    ids = arrays["person_ids"]
    numbers = arrays["frame_indices"]
    boxes = arrays["boxes_xyxy"]
    confidences = arrays.get("confidences", np.ones(len(np.atleast_1d(ids)), np.float32))
    check_lengths(path, "its arrays", ids, numbers, boxes, confidences)
    return BoxTable(
        ids,
        numbers,
        boxes,
        confidences,
        first_frame_number=_integer(arrays, "first_frame_number", 0, path),
        frame_stride=_integer(arrays, "frame_stride", 1, path),
        is_normalised=_integer(arrays, "is_normalised", 0, path) == 1,
    )


def save_tracks(
    path: Path | BinaryIO, tracks: Iterable[Track], *, is_normalised: bool = False
) -> None:
    """Write streamproc's own npz: see the module; frames start at 0, the stride is 1."""
    tracks = list(tracks)
    ids = [np.full(len(track), track.person_id, np.int64) for track in tracks]
    none = np.zeros(0, np.int64)
    no_boxes = np.zeros((0, 4), np.float32)
    no_confidences = np.zeros(0, np.float32)
    save_boxes(
        path,
        person_ids=np.concatenate([none, *ids]),
        frame_indices=np.concatenate([none, *(track.frame_indices for track in tracks)]),
        boxes_xyxy=np.concatenate([no_boxes, *(track.boxes_xyxy for track in tracks)]),
        confidences=np.concatenate([no_confidences, *(track.confidences for track in tracks)]),
        is_normalised=is_normalised,
    )


def save_boxes(
    path: Path | BinaryIO,
    *,
    person_ids: Array,
    frame_indices: Array,
    boxes_xyxy: Array,
    confidences: Array,
    is_normalised: bool = False,
) -> None:
    """Write the same of boxes in any order: ids (n,), frames (n,), boxes (n, 4), confidences."""
    version = _NORMALISED_VERSION if is_normalised else _FORMAT_VERSION
    flag: dict[str, Any] = {"is_normalised": np.int64(1)} if is_normalised else {}
    np.savez_compressed(
        path,
        format_version=np.int64(version),
        first_frame_number=np.int64(0),
        frame_stride=np.int64(1),
        person_ids=person_ids,
        frame_indices=frame_indices,
        boxes_xyxy=boxes_xyxy,
        confidences=confidences,
        **flag,
    )


def _refuse_class(path: Path, object_class: int | str | None) -> None:
    if object_class is not None:
        raise TracksError(
            f"{path}: an npz of tracks has no classes to choose from: leave --class out"
        )


def _arrays(
    content: Content, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Array]:
    arrays = read_npz(content.path, (*required, *optional))
    if any(name not in arrays for name in required):
        names = sorted(name.removesuffix(".npy")[:80] for name in content.members)
        raise TracksError(
            f"{content.path}: expected the key 'persons' (canonical_persons) or 'person_ids', "
            f"'frame_indices' and 'boxes_xyxy' (streamproc), got {names[:8]}"
        )
    return arrays


def _integer(arrays: Mapping[str, Array], name: str, default: int, path: Path) -> int:
    value = arrays.get(name)
    if value is None:
        return default
    if value.size != 1 or value.dtype.kind not in "iu":
        raise TracksError(
            f"{path}: expected one whole number as {name!r}, "
            f"got {value.dtype} of shape {value.shape}"
        )
    return int(value.reshape(()))


class _Person:
    """One dict of `persons`, checked: frame numbers (k,), boxes (k, 4), confidences (k,)."""

    def __init__(self, person_id: int, numbers: Array, boxes: Array, confidences: Array) -> None:
        self.person_id = person_id
        self.numbers = numbers
        self.boxes = boxes
        self.confidences = confidences


def _canonical_person(person: object, position: int, path: Path) -> _Person:
    what = f"person number {position}"
    if not isinstance(person, dict):
        raise TracksError(f"{path}: expected a dict for {what}, got {type(person).__name__}")
    missing = [key for key in _PERSON_KEYS if key not in person]
    if missing:
        raise TracksError(
            f"{path}: expected the keys person_id, frame_numbers and bboxes in {what}, "
            f"{missing[0]!r} is missing"
        )
    person_id = _person_id(person["person_id"], what, path)
    try:
        numbers = np.asarray(person["frame_numbers"])
        boxes = np.asarray(person["bboxes"])
        given = person.get("confidences")
        confidences = np.ones(np.shape(numbers), np.float32) if given is None else np.asarray(given)
    except ValueError as error:
        raise TracksError(f"{path}: {what} holds arrays of uneven lengths") from error
    if numbers.size == 0:
        return _Person(person_id, np.zeros(0), np.zeros((0, 4)), np.zeros(0))
    check_lengths(path, what, numbers, numbers, boxes, confidences)
    return _Person(person_id, numbers, boxes, confidences)


def _person_id(value: object, what: str, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TracksError(
            f"{path}: expected a whole number as person_id of {what}, got {value!r:.40}"
        )
    if not -(2**63) <= value < 2**63:
        raise TracksError(f"{path}: the person_id of {what} is larger than 64 bits")
    return value
