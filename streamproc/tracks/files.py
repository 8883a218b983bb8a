"""Reads track files into `Track`s, mends what makes sense, and counts what it leaves out.

Three formats: `canonical_persons.npz` (a pickle of dicts, read by `pickle_guard`), MOT Challenge
text (`frame,id,x,y,w,h,confidence,class,…`, 1-based frames), and streamproc's own npz of flat
arrays (see `save_tracks`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.files import sha256_of
from streamproc.tracks.pickle_guard import read_npz
from streamproc.types import Track, TrackSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.types import BoolArray, Float32Array, Int64Array

MAX_TEXT_BYTES = 512 * 1024 * 1024
_MOT_MIN_COLUMNS = 6
_MAX_FRAME_NUMBER = 2**40  # beyond any video; keeps int64 arithmetic safe
_MISFIT_SHARE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """One row a box, as the file has it, (n,) each and boxes (n, 4) xyxy.

    `base` and `stride` as the file says.
    """

    person_ids: np.ndarray[Any, Any]
    frame_numbers: np.ndarray[Any, Any]
    boxes_xyxy: np.ndarray[Any, Any]
    confidences: np.ndarray[Any, Any]
    base: int
    stride: int = 1


def find_track_file(video: Path) -> Path | None:
    """Return the track file that lies beside a video, or None: see the README for the names looked for."""
    names = (
        f"{video.stem}.persons.npz",
        f"{video.stem}.canonical_persons.npz",
        f"{video.stem}.mot.txt",
    )
    candidates = [video.with_name(name) for name in (*names, "canonical_persons.npz")]
    return next((path for path in candidates if path.is_file()), None)


def load_tracks(
    path: Path,
    *,
    first_frame_number: int | None = None,
    frame_stride: int | None = None,
    object_class: int | None = None,
    is_npz: bool | None = None,
) -> TrackSet:
    """Read a track file; numbers become `(number - first_frame_number) * frame_stride`.

    Raises TracksError.

    None takes what the format says (MOT starts at 1, canonical_persons at 0, ours says itself).
    `object_class` keeps only that class of a MOT text's eighth column. `is_npz`: None goes by the
    name.
    """
    if not path.is_file():
        raise TracksError(
            f"{path}: expected a track file, found {'a directory' if path.is_dir() else 'nothing'} there"
        )
    problems: Counter[str] = Counter()
    if path.suffix.lower() == ".npz" if is_npz is None else is_npz:
        if object_class is not None:
            raise TracksError(
                f"{path}: a class can be chosen in MOT text only, this is an npz: leave --class out"
            )
        table = _read_npz_table(path, problems)
    else:
        table = _read_mot(path, object_class, problems)
    base = table.base if first_frame_number is None else first_frame_number
    stride = table.stride if frame_stride is None else frame_stride
    tracks = tuple(_to_tracks(table, base, stride, problems))
    return TrackSet(tracks, problems, source=str(path), sha256=sha256_of(path))


def save_tracks(path: Path, tracks: Iterable[Track]) -> None:
    """Write streamproc's own npz: one row a box in `person_ids`, `frame_indices`, `boxes_xyxy`, `confidences`.

    `format_version` is 1, `first_frame_number` 0 and `frame_stride` 1; no pickle.
    """
    tracks = list(tracks)
    empty = np.zeros(0, np.int64)
    np.savez_compressed(
        path,
        format_version=np.int64(1),
        first_frame_number=np.int64(0),
        frame_stride=np.int64(1),
        person_ids=np.concatenate(
            [empty, *(np.full(len(t), t.person_id, np.int64) for t in tracks)]
        ),
        frame_indices=np.concatenate([empty, *(t.frame_indices for t in tracks)]),
        boxes_xyxy=np.concatenate([np.zeros((0, 4), np.float32), *(t.boxes_xyxy for t in tracks)]),
        confidences=np.concatenate([np.zeros(0, np.float32), *(t.confidences for t in tracks)]),
    )


def fit_to_video(tracks: TrackSet, *, frame_count: int, width: int, height: int) -> TrackSet:
    """Leave out boxes beyond the video's end or wholly outside its picture, count them, and hint at what to try.

    Raises TracksError where no box is left: tracks of another video.
    """
    problems = Counter(tracks.problems)
    kept: list[Track] = []
    for track in tracks.tracks:
        inside_time = track.frame_indices < frame_count
        boxes = track.boxes_xyxy
        inside = (
            (boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
        )
        problems["frames-beyond-video"] += int(np.count_nonzero(~inside_time))
        problems["boxes-outside-picture"] += int(np.count_nonzero(inside_time & ~inside))
        kept += [_select(track, inside_time & inside)] if (inside_time & inside).any() else []
    problems = +problems
    total = sum(len(track) for track in tracks.tracks)
    hints = _hints(
        tracks, problems, total=total, frame_count=frame_count, width=width, height=height
    )
    if total and not kept:
        reason = hints[0] if hints else "no box lies in the picture within the video's time"
        raise TracksError(f"{tracks.source}: the tracks do not fit the video: {reason}")
    return replace(tracks, tracks=tuple(kept), problems=problems, hints=(*tracks.hints, *hints))


def _select(track: Track, keep: BoolArray) -> Track:
    if keep.all():
        return track
    return replace(
        track,
        frame_indices=track.frame_indices[keep],
        boxes_xyxy=track.boxes_xyxy[keep],
        confidences=track.confidences[keep],
    )


def _hints(
    tracks: TrackSet,
    problems: Counter[str],
    *,
    total: int,
    frame_count: int,
    width: int,
    height: int,
) -> list[str]:
    hints = []
    last = max((int(track.frame_indices[-1]) for track in tracks.tracks), default=-1)
    if last == frame_count:
        hints.append(
            f"the last box is in frame {last}, one past the video's last ({frame_count - 1}): the frame numbers may "
            "start at 1, try --first-frame-number 1"
        )
    elif last > frame_count:
        hints.append(
            f"boxes reach frame {last} but the video has {frame_count} frames: is it the right video, and are "
            "--first-frame-number and --frame-stride right?"
        )
    if problems["frames-before-video"]:
        hints.append(
            "some frame numbers lie before the first one: the file may start at 0, try --first-frame-number 0"
        )
    if problems["boxes-outside-picture"] > _MISFIT_SHARE * total:
        hints.append(
            f"{problems['boxes-outside-picture']} of {total} boxes lie outside the {width}x{height} picture: "
            "were the tracks made on a video of another size?"
        )
    return hints


def _read_npz_table(path: Path, problems: Counter[str]) -> _Table:
    arrays = read_npz(path)
    if "persons" in arrays:
        return _canonical_table(arrays["persons"], path, problems)
    missing = [name for name in ("person_ids", "frame_indices", "boxes_xyxy") if name not in arrays]
    if missing:
        raise TracksError(
            f"{path}: expected the key 'persons' (canonical_persons) or 'person_ids', 'frame_indices' and 'boxes_xyxy' "
            f"(streamproc), got {sorted(arrays)[:8]}"
        )
    version = _integer(arrays, "format_version", 1, path)
    if version != 1:
        raise TracksError(
            f"{path}: it is of format version {version}, this streamproc reads version 1: upgrade streamproc"
        )
    ids, numbers, boxes = (arrays[name] for name in ("person_ids", "frame_indices", "boxes_xyxy"))
    confidences = arrays.get("confidences", np.ones(len(np.atleast_1d(ids)), np.float32))
    _check_lengths(path, "its arrays", ids, numbers, boxes, confidences)
    base, stride = (
        _integer(arrays, "first_frame_number", 0, path),
        _integer(arrays, "frame_stride", 1, path),
    )
    return _Table(ids, numbers, boxes, confidences, base, stride)


def _integer(
    arrays: Mapping[str, np.ndarray[Any, Any]], name: str, default: int, path: Path
) -> int:
    value = arrays.get(name)
    if value is None:
        return default
    if value.size != 1 or value.dtype.kind not in "iu":
        raise TracksError(
            f"{path}: expected one whole number as {name!r}, got {value.dtype} of shape {value.shape}"
        )
    return int(value.reshape(()))


def _check_lengths(
    path: Path, what: str, ids: Any, numbers: Any, boxes: Any, confidences: Any
) -> None:
    shapes = [np.shape(a) for a in (ids, numbers, boxes, confidences)]
    n = shapes[0][0] if shapes[0] else -1
    if shapes != [(n,), (n,), (n, 4), (n,)]:
        raise TracksError(
            f"{path}: expected {what} as ids (n,), frames (n,), boxes (n, 4), confidences (n,), got {shapes}"
        )
    if any(np.asarray(a).dtype.kind not in "iuf" for a in (ids, numbers, boxes, confidences)):
        raise TracksError(f"{path}: expected numbers in {what}")


def _canonical_table(persons: np.ndarray[Any, Any], path: Path, problems: Counter[str]) -> _Table:
    parts = []
    seen: set[int] = set()
    for position, person in enumerate(np.asarray(persons).ravel().tolist()):
        person_id, numbers, boxes, confidences = _canonical_person(person, position, path)
        problems["ids-duplicate"] += person_id in seen
        seen.add(person_id)
        parts.append((np.full(len(numbers), person_id, np.int64), numbers, boxes, confidences))
    if not parts:
        return _Table(
            np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), base=0
        )
    ids, numbers, boxes, confidences = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return _Table(ids, numbers, boxes, confidences, base=0)


def _canonical_person(person: object, position: int, path: Path) -> tuple[int, Any, Any, Any]:
    what = f"person number {position}"
    if not isinstance(person, dict):
        raise TracksError(f"{path}: expected a dict for {what}, got {type(person).__name__}")
    missing = [key for key in ("person_id", "frame_numbers", "bboxes") if key not in person]
    if missing:
        raise TracksError(
            f"{path}: expected the keys person_id, frame_numbers and bboxes in {what}, {missing[0]!r} is missing"
        )
    person_id = person["person_id"]
    if isinstance(person_id, bool) or not isinstance(person_id, int | np.integer):
        raise TracksError(
            f"{path}: expected a whole number as person_id of {what}, got {person_id!r:.40}"
        )
    try:
        numbers, boxes = np.asarray(person["frame_numbers"]), np.asarray(person["bboxes"])
        given = person.get("confidences")
        confidences = np.ones(np.shape(numbers), np.float32) if given is None else np.asarray(given)
        if numbers.size == 0:
            numbers, boxes, confidences = np.zeros(0), np.zeros((0, 4)), np.zeros(0)
    except ValueError as error:
        raise TracksError(f"{path}: {what} holds arrays of uneven lengths") from error
    _check_lengths(path, what, numbers, numbers, boxes, confidences)
    return _within_int64(int(person_id), path), numbers, boxes, confidences


def _within_int64(number: int, path: Path) -> int:
    if abs(number) >= 2**63:
        raise TracksError(f"{path}: the person_id {number} is larger than 64 bits")
    return number


def _read_mot(path: Path, object_class: int | None, problems: Counter[str]) -> _Table:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise TracksError(
            f"{path}: larger than the {MAX_TEXT_BYTES} bytes that a track text may have"
        )
    rows: list[tuple[float, ...]] = []
    for line_number, line in enumerate(
        path.read_bytes().decode("utf-8", "replace").splitlines(), 1
    ):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = _mot_row(line, line_number, path)
        wanted = object_class is None or (len(row) > 7 and row[7] == object_class)  # noqa: PLR2004 - MOT's eighth column
        problems["boxes-other-class"] += not wanted
        if wanted:
            rows.append(row)
    number, ids, x, y, w, h, confidence = (
        np.array([(*row, -1.0)[:7] for row in rows], np.float64).reshape(-1, 7).T
    )
    ignored = (
        confidence == 0
    )  # MOT truth marks with 0 what is not to be counted; detectors write no zeros
    problems["boxes-marked-ignored"] += int(ignored.sum())
    boxes = np.stack([x, y, x + w, y + h], axis=1)
    return _Table(ids[~ignored], number[~ignored], boxes[~ignored], confidence[~ignored], base=1)


def _mot_row(line: str, line_number: int, path: Path) -> tuple[float, ...]:
    fields = line.replace(",", " ").split()
    try:
        row = tuple(float(field) for field in fields)
    except ValueError:
        row = ()
    if len(row) < _MOT_MIN_COLUMNS:
        raise TracksError(
            f"{path}: line {line_number} is no MOT text (frame,id,x,y,w,h,confidence,…): {line.strip()[:60]!r}"
        )
    return row


def _to_tracks(table: _Table, base: int, stride: int, problems: Counter[str]) -> list[Track]:
    ids, numbers = (
        np.asarray(column, np.float64) for column in (table.person_ids, table.frame_numbers)
    )
    with np.errstate(over="ignore"):
        boxes = np.asarray(table.boxes_xyxy).reshape(-1, 4).astype(np.float32, copy=False)
        confidences = np.asarray(table.confidences).astype(np.float32, copy=False)
    checks = (
        (
            "boxes-not-finite",
            np.isfinite(boxes).all(axis=1)
            & np.isfinite(ids)
            & (np.abs(numbers) < _MAX_FRAME_NUMBER),
        ),
        (
            "frame-numbers-broken",
            (numbers == np.floor(numbers)) & (ids == np.floor(ids)) & (np.abs(ids) < 2.0**53),
        ),
        ("boxes-empty", (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])),
        ("frames-before-video", numbers >= base),
    )
    keep = np.ones(len(ids), bool)
    for code, good in checks:
        problems[code] += int(np.count_nonzero(keep & ~good))
        keep &= good
    confidences = np.where(
        np.isfinite(confidences) & (confidences >= 0), confidences, np.float32(1)
    ).clip(0, 1)
    groups = _group(np.flatnonzero(keep), ids, numbers, confidences, problems)
    for code in [code for code, count in problems.items() if not count]:
        del problems[code]
    return [
        Track(
            int(ids[rows[0]]),
            (numbers[rows].astype(np.int64) - base) * stride,
            boxes[rows],
            confidences[rows],
        )
        for rows in groups
    ]


def _group(
    rows: Int64Array,
    ids: npt.NDArray[np.float64],
    numbers: npt.NDArray[np.float64],
    confidences: Float32Array,
    problems: Counter[str],
) -> list[Int64Array]:
    """Split `rows` by id, each part by rising frame number; of several boxes in a frame the most confident stays."""
    same_id = ids[rows[1:]] == ids[rows[:-1]]
    problems["frames-unsorted"] += int(
        np.count_nonzero(same_id & (numbers[rows[1:]] < numbers[rows[:-1]]))
    )
    order = rows[np.lexsort((-confidences[rows], numbers[rows], ids[rows]))]
    same_id = ids[order[1:]] == ids[order[:-1]]
    double = same_id & (numbers[order[1:]] == numbers[order[:-1]])
    problems["boxes-duplicate"] += int(double.sum())
    single = order[np.r_[True, ~double][: len(order)]]
    starts = np.flatnonzero(ids[single[1:]] != ids[single[:-1]]) + 1
    return np.split(single, starts) if len(single) else []
