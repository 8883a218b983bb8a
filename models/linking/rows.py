"""What `streamproc replay` makes of the track files of real trackers, and their truth.

DATA/trackers has a folder for each video, with its truth, `gt.txt`, and a MOT text for each
tracker. The vectors of single crops are in no file that replay writes, so they are kept as they
pass by.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc import replay
from streamproc.crops.overlaps import find_overlaps
from streamproc.crops.trajectory import thinned
from streamproc.gallery.linking.pair_features import close_video
from streamproc.ids import person_key_of
from streamproc.pipeline import run as pipeline_run
from streamproc.reid.embedder import person_vector
from streamproc.tracks import load_tracks
from streamproc.tracks.fit import fit_to_video
from streamproc.types import Track

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.gallery.linking.pair_features import LooksModel, Video

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]
    Array = npt.NDArray[Any]

VIDEOS = {
    "Venice-2": "trackers/Venice-2/video.mp4",
    "PETS09-S2L1": "videos/vtest.avi",
    "TUD-Campus": "videos/TUD-Campus.mp4",
}
"""Where the videos of DATA/trackers are that have one."""


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Candidates: pairs (c, 2) of track ids, probabilities (c,), and which are likely (c,)."""

    pairs: IntArray
    probability: FloatArray
    likely: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFile:
    """One tracker's tracks of one video, and what replay made of them.

    `tracks` and `truth` are as in their files, `fitted` the tracks within the video, by id. `ids`
    (n,) are those of the tracks with a vector, in the order of their person keys; `crop_vectors`
    and `crop_frames` their embedded crops in time order, (k, dim) and (k,) each. `vetoes` (v, 2)
    number these tracklets. `size`: of the picture in px. `listed`: the product's candidates.
    """

    video: str
    tracker: str
    truth: tuple[Track, ...]
    tracks: tuple[Track, ...]
    fitted: Mapping[int, Track]
    ids: IntArray
    crop_vectors: Sequence[FloatArray]
    crop_frames: Sequence[IntArray]
    vetoes: IntArray
    size: tuple[int, int]
    frames_per_second: float
    listed: Listed

    def __repr__(self) -> str:
        return f"TrackedFile({self.video}/{self.tracker}, {len(self.ids)} tracklets)"

    def vectors(self) -> FloatArray:
        """Return the unit vectors (n, dim) of the tracklets."""
        means = [person_vector(vectors.astype(np.float32)) for vectors in self.crop_vectors]
        return np.stack(means).astype(np.float64)

    def closed(self, looks: LooksModel) -> Video:
        """Return what is known of the video when it closes."""
        own = [self.fitted[int(i)] for i in self.ids]
        return close_video(
            looks,
            self.vectors(),
            np.array([len(vectors) for vectors in self.crop_vectors]),
            self.vetoes,
            [thinned(track.frame_indices, track.boxes_xyxy) for track in own],
            width=self.size[0],
            height=self.size[1],
            frames_per_second=self.frames_per_second,
        )


def tracked_files(data: Path, weights: str, cache: Path | None) -> Iterator[TrackedFile]:
    """Replay all track files of all videos, or read what `cache` has of an earlier run."""
    for video, place in VIDEOS.items():
        folder = data / "trackers" / video
        for path in sorted(folder.glob("*.txt")):
            if path.name != "gt.txt":
                known = None if cache is None else cache / f"{video}.{path.stem}.npz"
                yield read_file(data / place, path, folder / "gt.txt", weights, known)


def read_file(
    video: Path, path: Path, truth: Path, weights: str, known: Path | None
) -> TrackedFile:
    """Replay one track file, or read what is in `known`, which is written if it is not there."""
    seen = _seen(video, path, weights, known)
    width, height, frame_count = seen["picture"].tolist()
    tracks = load_tracks(path)
    inside = fit_to_video(tracks, frame_count=frame_count, width=width, height=height)
    fitted = {track.person_id: track for track in inside.tracks}
    bounds = np.cumsum(seen["crop_counts"])[:-1]
    return TrackedFile(
        path.parent.name,
        path.stem,
        load_tracks(truth).tracks,
        tracks.tracks,
        fitted,
        seen["ids"],
        np.split(seen["crop_vectors"].astype(np.float64), bounds),
        np.split(seen["crop_frames"], bounds),
        _vetoes(fitted, seen["ids"], ()),
        (width, height),
        float(seen["frames_per_second"]),
        Listed(seen["pairs"], seen["probability"], seen["likely"]),
    )


def _seen(video: Path, path: Path, weights: str, known: Path | None) -> dict[str, Array]:
    """Return what `_replay` does, from the file `known` where it is there."""
    if known is not None and known.is_file():
        with np.load(known) as arrays:
            return dict(arrays)
    seen = _replay(video, path, weights)
    if known is not None:
        np.savez(known, allow_pickle=False, **seen)
    return seen


def _replay(video: Path, path: Path, weights: str) -> dict[str, Array]:
    """Replay one track file with all defaults; return what `read_file` needs, as arrays."""
    with _crops_kept() as kept:
        result = replay(
            video,
            persons=path,
            clustering__osnet_model=weights,
            clustering__split_tracks=False,
            animate=False,
        )
    opened = kept.pop("video")
    pts = np.asarray(opened.frame_table.pts_seconds)
    ids = sorted(kept, key=lambda person_id: person_key_of("", person_id))
    found = result.candidates
    pairs = [[person.person_id for person in event.persons] for event in found]
    return {
        "ids": np.array(ids, np.int64),
        "crop_counts": np.array([len(kept[i][0]) for i in ids]),
        "crop_frames": np.concatenate([kept[i][0] for i in ids]),
        "crop_vectors": np.concatenate([kept[i][1] for i in ids]),
        "picture": np.array([opened.width, opened.height, opened.frame_count]),
        "frames_per_second": np.array(round((len(pts) - 1) / (pts[-1] - pts[0]), 3)),
        "pairs": np.array(pairs, np.int64).reshape(-1, 2),
        "probability": np.array([event.probability for event in found], np.float64),
        "likely": np.array([event.band == "likely" for event in found], bool),
    }


@contextmanager
def _crops_kept() -> Iterator[dict[Any, Any]]:
    """Keep frames and vectors of each person's embedded crops, by id, and the video."""
    kept: dict[Any, Any] = {}
    make_event = pipeline_run.person_event  # type: ignore[attr-defined]

    def keep(*given: Any) -> Any:
        video, person, vectors = given[2:5]
        order = np.argsort(person.bucket.embedded)
        frames = [person.bucket.crops[i].frame_index for i in person.bucket.embedded]
        kept[person.person_id] = (np.array(frames)[order], np.asarray(vectors)[order])
        kept["video"] = video
        return make_event(*given)

    pipeline_run.person_event = keep  # type: ignore[attr-defined, assignment]
    try:
        yield kept
    finally:
        pipeline_run.person_event = make_event  # type: ignore[attr-defined]


def _vetoes(
    fitted: Mapping[int, Track], ids: IntArray, parts: Iterable[tuple[int, int]]
) -> IntArray:
    """Return who of `ids` was seen apart in the same frames, (v, 2), and the `parts` of a track."""
    position = {int(person): i for i, person in enumerate(ids)}
    overlaps = find_overlaps([fitted[person] for person in sorted(fitted)])
    beside = [(a, b) for a, others in overlaps.seen_with.items() for b in others]
    pairs = {
        tuple(sorted((position[a], position[b])))
        for a, b in (*beside, *parts)
        if a in position and b in position
    }
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def split(file: TrackedFile, suspects: Mapping[int, int]) -> TrackedFile:
    """Cut tracks, by id, before the frame that is given for each; parts of a track never match.

    The later part gets a new id. A part's vector is that of its share of the crops.
    """
    new = max(track.person_id for track in file.tracks) + 1
    later = {person: new + i for i, person in enumerate(sorted(suspects))}
    rows = []
    for person, vectors, frames in zip(file.ids, file.crop_vectors, file.crop_frames, strict=True):
        cut = suspects.get(int(person), np.inf)
        for name, own in ((int(person), frames < cut), (later.get(int(person)), frames >= cut)):
            if own.any():
                rows.append((name, vectors[own], frames[own]))
    ids, crop_vectors, crop_frames = zip(*rows, strict=True)
    names = np.array(ids, np.int64)
    fitted = {track.person_id: track for track in _cut(file.fitted.values(), suspects, later)}
    return replace(
        file,
        tracks=tuple(_cut(file.tracks, suspects, later)),
        fitted=fitted,
        ids=names,
        crop_vectors=crop_vectors,
        crop_frames=crop_frames,
        vetoes=_vetoes(fitted, names, later.items()),
    )


def _cut(
    tracks: Iterable[Track], suspects: Mapping[int, int], later: Mapping[int, int]
) -> Iterator[Track]:
    for track in tracks:
        person = track.person_id
        frames = track.frame_indices
        cut = int(np.searchsorted(frames, suspects.get(person, frames[-1] + 1)))
        for name, (start, stop) in zip(
            (person, later.get(person, person)), pairwise((0, cut, len(frames))), strict=True
        ):
            if start < stop:
                own = slice(start, stop)
                boxes = track.boxes_xyxy[own]
                confidences = track.confidences[own]
                yield Track(name, frames[own], boxes, confidences)
