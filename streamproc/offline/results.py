"""What a replay found: its state while it runs, the result for Python, run.json and the report."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.files import readable
from streamproc.gallery import FLOAT32_SLACK, Gallery, has_veto, pair_similarity
from streamproc.ids import person_key_of
from streamproc.offline.report import (
    GalleryReport,
    PersonEntry,
    PersonId,
    VetoedPair,
    keys_of,
    likeliest_first,
)
from streamproc.pipeline.resources import VideoStats
from streamproc.version import __version__

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from streamproc.errors import InputError
    from streamproc.events import DuplicateCandidate, DuplicateGroup, PersonEmbedding, TrackSuspect
    from streamproc.gallery import Row
    from streamproc.gallery.identities import Identities
    from streamproc.offline.past_decisions import CurrentDecisions
    from streamproc.offline.sources import ReplaySource
    from streamproc.pipeline.pipeline import VideoSummary
    from streamproc.reid import Embedder
    from streamproc.settings import Settings
    from streamproc.tracks import ReadOptions
    from streamproc.tracks.detection.detector import Detector
    from streamproc.tracks.detection.record import TrackRecord
    from streamproc.types import Float32Array, Skipped, TrackSpan

_VERSIONS_OF = ("av", "numpy", "onnxruntime", "pillow", "plotly")


@dataclass(slots=True, eq=False)
class ReplayVideo:
    """One video of a replay, how far it is, and what became of it."""

    source: ReplaySource
    gallery_id: str
    stats: VideoStats = field(default_factory=VideoStats)
    summary: VideoSummary | None = None
    error: InputError | None = None
    record: TrackRecord | None = None
    """The boxes of tracks that were found, where they are to be written."""
    tracks_written: Path | None = None
    """The file in the output folder to which tracks that were found are written."""
    detector: Detector | None = None

    @property
    def name(self) -> str:
        """The name of the video's file."""
        return readable(self.source.path.name)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a replay found in one gallery.

    `person_ids` are ints for one video, "7#2" for a part of a track, and "video_id/person_id" for
    several in one gallery.
    `similarity` (N, N) and `embeddings` (N, D) are in their order; both are None where the network
    did not run. `candidates` and `groups` are the likeliest first, `vetoed_pairs` the most similar
    first. `notices` say what was ignored or not done; `partial` is true where something that was
    asked for was not done.
    """

    gallery_id: str
    person_ids: tuple[int | str, ...]
    similarity: Float32Array | None
    embeddings: Float32Array | None
    candidates: tuple[DuplicateCandidate, ...]
    groups: tuple[DuplicateGroup, ...]
    vetoed_pairs: tuple[VetoedPair, ...]
    skipped: tuple[Skipped, ...]
    notices: tuple[str, ...]
    partial: bool
    interrupted: bool
    out: Path | None
    summary: dict[str, Any]


@dataclass(slots=True, eq=False)
class ReplayState:
    """What a replay gathers while it runs. Written by `Replay`, read here.

    `candidates`, `groups` and `suspects` are all events of each gallery. `hrefs`, `strip_hrefs` and
    `animation_errors` are by (video_id, person_id), `stills` by person key, `decided` is what
    reviewers said before, by gallery. `partial`: something that was asked for was not done.
    """

    settings: Settings
    shared_gallery: str | None
    out: Path | None
    galleries: dict[str, Gallery] = field(default_factory=dict)
    candidates: dict[str, list[DuplicateCandidate]] = field(default_factory=dict)
    groups: dict[str, list[DuplicateGroup]] = field(default_factory=dict)
    suspects: dict[str, list[TrackSuspect]] = field(default_factory=dict)
    stills: dict[str, bytes] = field(default_factory=dict)
    hrefs: dict[tuple[str, int], str] = field(default_factory=dict)
    strip_hrefs: dict[tuple[str, int], str] = field(default_factory=dict)
    animation_errors: dict[tuple[str, int], str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    decided: dict[str, CurrentDecisions] = field(default_factory=dict)
    partial: bool = False
    interrupted: bool = False
    embedder: Embedder | None = None

    def gallery_of(self, gallery_id: str) -> Gallery:
        """Return the gallery of that name, made where there is none yet."""
        limit = self.settings.limits.max_persons_per_gallery
        return self.galleries.setdefault(gallery_id, Gallery(gallery_id, max_persons=limit))


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of what this ran on, for run.json; the first call takes 5 ms."""
    packages = {name: metadata.version(name) for name in _VERSIONS_OF}
    return packages | {"python": platform.python_version()}


def result_of(
    state: ReplayState, videos: Sequence[ReplayVideo], *, several: bool, wall_seconds: float
) -> Result:
    """Return the result of one gallery, or of one video's part of it.

    `several`: persons are named by their keys, else by the tracker's ids.
    """
    gallery = state.gallery_of(videos[0].gallery_id)
    keys = [key for key in _keys(videos) if key in gallery.rows]
    tracklets = [gallery.rows[key].tracklet for key in keys]
    embeddings: Float32Array | None = None
    similarity: Float32Array | None = None
    if state.embedder is not None:
        embeddings = np.zeros((0, state.embedder.dim), np.float32)
        if tracklets:
            embeddings = np.stack([tracklet.vector.numpy() for tracklet in tracklets])
        similarity = gallery.matrix(keys)
    candidates = _candidates(state, gallery.gallery_id, keys)
    return Result(
        gallery_id=gallery.gallery_id,
        person_ids=tuple(keys if several else map(_id_of, tracklets)),
        similarity=similarity,
        embeddings=embeddings,
        candidates=tuple(candidates),
        groups=tuple(_groups(state, gallery.gallery_id, keys)),
        vetoed_pairs=tuple(_vetoed_pairs(state, gallery, keys, similarity)),
        skipped=tuple(skip for video in videos for skip in _summary(video).skipped),
        notices=tuple(state.notices),
        partial=state.partial,
        interrupted=state.interrupted,
        out=state.out,
        summary=_run_record(state, videos, len(candidates), wall_seconds),
    )


def _id_of(tracklet: PersonEmbedding) -> PersonId:
    """Return how files of one video call a person."""
    person_id = tracklet.person_id
    return person_id if tracklet.part is None else f"{person_id}#{tracklet.part}"


def _keys(videos: Sequence[ReplayVideo]) -> list[str]:
    """Return the keys of all persons that have crops, in the order of all files."""
    return [
        person_key_of(video.source.video_id, person_id, part)
        for video in videos
        for person_id, part, _, _ in _persons_of(_summary(video))
    ]


def _persons_of(summary: VideoSummary) -> Iterator[tuple[int, int | None, TrackSpan, int]]:
    """Yield the persons of one video that have crops, by rising id: tracks, or their parts.

    Each is a track's id, which part of it, the frames, and how many crops.
    """
    for person_id in sorted(summary.tracks):
        parts = summary.parts.get(person_id)
        if parts is None:
            yield person_id, None, summary.tracks[person_id], summary.crop_counts[person_id]
            continue
        for one in parts:
            yield person_id, one.part, one.span, one.crop_count


def _candidates(
    state: ReplayState, gallery_id: str, keys: Collection[str]
) -> list[DuplicateCandidate]:
    """Return what was announced last of each pair of `keys`, but the withdrawn ones."""
    last = {event.candidate_id: event for event in state.candidates.get(gallery_id, ())}
    wanted = set(keys)
    decided = state.decided.get(gallery_id)
    return likeliest_first(
        event
        for event in last.values()
        if event.state != "withdrawn"
        and wanted.issuperset(keys_of(event))
        and not (decided and decided.identities.is_ruled_out(*keys_of(event)))
    )


def _groups(state: ReplayState, gallery_id: str, keys: Collection[str]) -> list[DuplicateGroup]:
    """Return what was announced last of each group, but the withdrawn ones.

    Of one video among several, those that lie within it. A group in which two were called different
    is no proposal any more; its other pairs are.
    """
    decided = state.decided.get(gallery_id)
    last = {event.group_id: event for event in state.groups.get(gallery_id, ())}
    wanted = set(keys)
    standing = [
        event
        for event in last.values()
        if event.state != "withdrawn"
        and wanted.issuperset(event.person_keys)
        and not (decided and _are_apart(decided.identities, event.person_keys))
    ]
    return sorted(standing, key=lambda event: (-(event.probability or 0), event.person_keys))


def _are_apart(identities: Identities, keys: Sequence[str]) -> bool:
    return any(identities.is_ruled_out(a, b) for a, b in combinations(keys, 2))


def _vetoed_pairs(
    state: ReplayState, gallery: Gallery, keys: Sequence[str], similarity: Float32Array | None
) -> list[VetoedPair]:
    """Return the pairs above the threshold that have a veto, the most similar first."""
    if similarity is None:
        return []
    threshold = state.settings.clustering.similarity_threshold
    near = np.triu(similarity > threshold - FLOAT32_SLACK, 1)
    pairs = []
    for i, j in np.argwhere(near).tolist():
        a = gallery.rows[keys[i]].tracklet
        b = gallery.rows[keys[j]].tracklet
        if has_veto(a, b) and (cosine := pair_similarity(a, b)) > threshold:
            pairs.append(VetoedPair((keys[i], keys[j]), cosine))
    return sorted(pairs, key=lambda pair: -pair.similarity)


def _run_record(
    state: ReplayState, videos: Sequence[ReplayVideo], candidate_count: int, wall_seconds: float
) -> dict[str, Any]:
    """Return the content of run.json."""
    busy = Counter[str]()
    for video in videos:
        busy += video.stats.seconds
    seconds = {stage: round(spent, 3) for stage, spent in sorted(busy.items())}
    return {
        "streamproc_version": __version__,
        "versions": dict(versions()),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "working_directory": _working_directory(),
        "settings": state.settings.model_dump(mode="json"),
        "model": _model(state.embedder),
        "gallery_id": videos[0].gallery_id,
        "videos": [video_record(video) for video in videos],
        "candidate_count": candidate_count,
        "notices": list(state.notices),
        "partial": state.partial,
        "interrupted": state.interrupted,
        "seconds": {**seconds, "wall": round(wall_seconds, 3)},
    }


def _working_directory() -> str | None:
    """Return from where the relative paths go, None where that folder was removed."""
    try:
        return readable(Path.cwd())
    except FileNotFoundError:
        return None


def video_record(video: ReplayVideo) -> dict[str, Any]:
    """Return what run.json says of a video."""
    summary = _summary(video)
    stats = video.stats
    tracks_path = video.source.tracks_path or video.tracks_written
    was_found = video.source.tracks_path is None
    return {
        "video_id": video.source.video_id,
        "run_id": summary.run_id,
        "path": readable(video.source.path),
        "tracks_path": None if tracks_path is None else readable(tracks_path),
        "tracks_from": "detector" if was_found else "file",
        "detector": _detector(video.detector),
        "tracks_options": _given(video.source.options),
        "outcome": summary.outcome,
        **summary.description,
        "persons_total": stats.persons_total,
        "persons_embedded": stats.persons_embedded,
        "frames_planned": stats.frames_planned,
        "crops_cut": stats.crops_cut,
        "crops_embedded": stats.crops_embedded,
        "animations": stats.animations_done,
        "tracks_in_parts": sorted(summary.parts),
        "undecodable_frames": summary.undecodable_frames,
        "track_problems": dict(sorted(summary.problems.items())),
        "skipped": [
            {"person_id": skip.person_id, "reason": skip.reason} for skip in summary.skipped
        ],
    }


def _given(options: ReadOptions) -> dict[str, Any]:
    """Return what was said of how a track file is read, without what was left to its format."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def _detector(detector: Detector | None) -> dict[str, Any] | None:
    if detector is None:
        return None
    return {"name": detector.name, "weights_sha256": detector.weights_sha256}


def _model(embedder: Embedder | None) -> dict[str, Any] | None:
    if embedder is None:
        return None
    return {
        "name": embedder.name,
        "architecture": "osnet",
        "weights_sha256": embedder.weights_sha256,
        "dim": embedder.dim,
    }


def report_of(
    state: ReplayState, result: Result, videos: Sequence[ReplayVideo], *, several: bool
) -> GalleryReport:
    """Return what is written of one gallery, or of one video's part of it."""
    names = ", ".join(video.name for video in videos)
    persons: list[PersonEntry] = []
    for video in videos:
        persons += _entries(state, video, several=several)
    return GalleryReport(
        gallery_id=result.gallery_id,
        title=f"{state.shared_gallery}: {names}" if several else names,
        timestamp=datetime.now(UTC),
        similarity_threshold=state.settings.clustering.similarity_threshold,
        persons=tuple(persons),
        embedded_ids=result.person_ids,
        embeddings=result.embeddings,
        similarity=result.similarity,
        candidates=result.candidates,
        groups=result.groups,
        vetoed_pairs=result.vetoed_pairs,
        suspects=tuple(_suspects(state, videos)),
        stills=state.stills,
        person_events=tuple(_person_events(state, videos)),
        model=result.summary["model"],
        notices=tuple(state.notices),
        run=result.summary,
    )


def _suspects(state: ReplayState, videos: Sequence[ReplayVideo]) -> Iterator[TrackSuspect]:
    """Yield the tracks of some videos of a gallery that were taken apart, the surest first."""
    parts_of = {video.source.video_id: _summary(video).parts for video in videos}
    known = state.suspects.get(videos[0].gallery_id, ())
    for event in sorted(known, key=lambda event: (-event.probability, event.person_key)):
        if event.person_id in parts_of.get(event.video_id, ()):
            yield event


def _person_events(state: ReplayState, videos: Sequence[ReplayVideo]) -> Iterator[bytes]:
    """Yield the events of the persons that have a vector, in the order of `Result.person_ids`."""
    if state.embedder is not None:
        rows = state.gallery_of(videos[0].gallery_id).rows
        for key in _keys(videos):
            if key in rows:
                yield rows[key].tracklet.to_json()


def _entries(state: ReplayState, video: ReplayVideo, *, several: bool) -> Iterator[PersonEntry]:
    """Yield the persons of one video that have crops, by rising id."""
    summary = _summary(video)
    video_id = video.source.video_id
    rows = state.gallery_of(video.gallery_id).rows
    skipped = {skip.person_id for skip in summary.skipped}
    folder = f"../{video_id}/webp_viewer/" if several else ""
    for person_id, part, span, crop_count in _persons_of(summary):
        if person_id in skipped:
            continue
        key = person_key_of(video_id, person_id, part)
        href = state.hrefs.get((video_id, person_id))
        strip = state.strip_hrefs.get((video_id, person_id))
        error = None
        if href is None:
            error = state.animation_errors.get(
                (video_id, person_id), "animations were not asked for"
            )
        yield PersonEntry(
            id=key if several else person_id if part is None else f"{person_id}#{part}",
            person_key=key,
            video_name=video.name,
            frames_tracked=span.box_count,
            first_frame_index=span.first_frame_index,
            last_frame_index=span.last_frame_index,
            first_seen_seconds=float(summary.pts_seconds[span.first_frame_index]),
            last_seen_seconds=float(summary.pts_seconds[span.last_frame_index]),
            crop_count=crop_count,
            best_quality=_best_quality(rows.get(key)),
            webp=None if href is None else folder + href,
            webp_error=error,
            crops_webp=None if strip is None else folder + strip,
        )


def _best_quality(row: Row | None) -> float:
    if row is None or not row.tracklet.crops:
        return 0.0
    return row.tracklet.crops[0].quality


def _summary(video: ReplayVideo) -> VideoSummary:
    assert video.summary is not None
    return video.summary
