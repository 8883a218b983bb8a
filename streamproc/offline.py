"""Replay: the stages of the stream in one process, with files where the stream has topics."""

from __future__ import annotations

import asyncio
import logging
import platform
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import InputError, TracksError, UsageError, VideoError, WeightsError
from streamproc.events import DuplicateCandidate, PersonEmbedding, VideoClosed, now, person_key_of, video_id_of
from streamproc.gallery import Gallery, apply, has_veto, pair_similarity
from streamproc.people import find_track_file, load_tracks
from streamproc.pipeline import Pipeline, VideoJob, VideoStats, VideoSummary
from streamproc.version import __version__
from streamproc.video import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamproc.crops import Plan
    from streamproc.outputs import OutputDirectory, Pair, PersonEntry
    from streamproc.reid import Embedder
    from streamproc.settings import Settings
    from streamproc.types import Bucket, Float32Array, Skipped

log = logging.getLogger(__name__)
_VERSIONS_OF = ("av", "numpy", "onnxruntime", "pillow", "plotly")


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """How track files are read; None takes what each format says."""

    first_frame_number: int | None = None
    frame_stride: int | None = None
    object_class: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One video to replay, with its tracks file."""

    path: Path
    tracks_path: Path
    video_id: str


@dataclass(slots=True, eq=False)
class Member:
    """One video's part in a replay, and what became of it."""

    source: Source
    gallery_id: str
    stats: VideoStats = field(default_factory=VideoStats)
    summary: VideoSummary | None = None
    error: InputError | None = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs above the threshold, most similar first: candidates, and those that a veto forbids."""

    candidates: tuple[Pair, ...]
    vetoed: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a replay found. `similarity` (N, N) and `embeddings` (N, D) are in the order of `person_ids`.

    `person_ids` are ints for one video and "video_id/person_id" for several in one gallery. `notices` say what was left
    out of the work (then `partial` is true). `similarity` and `embeddings` are None where the network did not run.
    """

    gallery_id: str
    person_ids: tuple[int | str, ...]
    similarity: Float32Array | None
    embeddings: Float32Array | None
    candidates: tuple[DuplicateCandidate, ...]
    pairs: Pairs
    skipped: tuple[Skipped, ...]
    notices: tuple[str, ...]
    partial: bool
    interrupted: bool
    out: Path | None
    summary: dict[str, Any]


def find_sources(videos: Sequence[Path], persons: Sequence[Path]) -> list[Source]:
    """Pair videos with their track files, and name them; raises UsageError or TracksError."""
    if persons and len(persons) != len(videos):
        raise UsageError(f"expected one --persons for each of the {len(videos)} videos, got {len(persons)}")
    names = Counter(video.name for video in videos)
    sources = []
    for i, video in enumerate(videos):
        if not video.is_file():
            raise VideoError(
                f"{video}: expected a video file, found {'a directory' if video.is_dir() else 'nothing'} there"
            )
        tracks = persons[i] if persons else find_track_file(video)
        if tracks is None:
            raise TracksError(
                f"{video}: no tracks found beside it: expected {video.stem}.persons.npz, {video.stem}.mot.txt or "
                "canonical_persons.npz there, or --persons FILE"
            )
        uri = video.name if names[video.name] == 1 else video.as_posix()
        sources.append(Source(video, tracks, video_id_of(uri)))
    if len({source.video_id for source in sources}) != len(sources):
        raise UsageError("a video is named twice: name each once")
    return sources


class Replay:
    """One replay of some videos: run it with `await run()`; `members` tell how far it is meanwhile."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: Settings,
        *,
        gallery: str | None = None,
        out: Path | None = None,
        tracks: TrackOptions = TrackOptions(),
    ) -> None:
        self.settings = settings
        self.members = [Member(source, gallery or source.video_id) for source in sources]
        self.stop = asyncio.Event()
        self._shared = gallery
        self._out = out
        self._track_options = tracks
        self._galleries: dict[str, Gallery] = {}
        self._events: dict[str, list[DuplicateCandidate]] = {}
        self._notices: list[str] = []
        self._partial = False
        self._started = time.perf_counter()
        self._directories: dict[str, OutputDirectory] = {}
        self._animation_errors: dict[tuple[str, int], str] = {}
        self._hrefs: dict[tuple[str, int], str] = {}

    async def run(self) -> list[Result]:
        """Process all videos and write the files; one result a gallery.

        A bad video among several is noted and the others go on; a single one raises its InputError. A cancelled run
        leaves no files.
        """
        try:
            embedder = await asyncio.to_thread(self._load_network)
            async with self._pipeline(embedder) as pipeline:
                for member in self.members:
                    if not self.stop.is_set():
                        await self._process(pipeline, member)
            if pipeline.embed is not None:
                self.members[0].stats.seconds.update(pipeline.embed.seconds)
            if pipeline.animate is not None:
                self._animation_errors = pipeline.animate.errors
            return self._conclude(embedder)  # on the loop: nothing else waits for it, and a signal cannot cut it
        finally:
            for directory in self._directories.values():
                directory.abort()  # nothing, after commit

    def _load_network(self) -> Embedder | None:
        from streamproc.reid import Embedder, find_weights

        clustering = self.settings.clustering
        if not clustering.enabled:
            self._note("similarity was skipped: clustering.enabled is false")
            return None
        try:
            weights = find_weights(clustering.osnet_model, cache_folder=self.settings.expanded_cache_folder())
            return Embedder(weights, threads=self.settings.threads)
        except WeightsError as error:
            self._note(f"similarity was skipped: {error}")
            return None

    def _note(self, notice: str) -> None:
        """Something asked for was not done: shown, written down, and exit code 4."""
        self._partial = True
        self._notices.append(notice)
        log.warning("%s", notice)

    def _pipeline(self, embedder: Embedder | None) -> Pipeline:
        limits = self.settings.limits
        return Pipeline(
            embedder=embedder,
            publish=self._match,
            write_animation=self._write_animation if self.settings.animate and self._out is not None else None,
            crop_memory_bytes=self.settings.crop_memory_mib * 1024 * 1024,
            limits=Limits(
                max_pixels_per_frame=limits.max_pixels_per_frame,
                max_frames=limits.max_frames,
                max_duration_seconds=limits.max_duration_seconds,
                max_file_bytes=limits.max_file_bytes,
            ),
            decode_threads=self.settings.threads,
        )

    async def _process(self, pipeline: Pipeline, member: Member) -> None:
        try:
            job = await asyncio.to_thread(self._job, member)
            member.summary = await pipeline.process(job, member.stats, self.stop)
        except InputError as error:
            if len(self.members) == 1:
                raise
            member.error = error
            self._note(str(error))

    def _job(self, member: Member) -> VideoJob:
        from streamproc.crops import CropOptions

        source, options = member.source, self._track_options
        tracks = load_tracks(
            source.tracks_path,
            first_frame_number=options.first_frame_number,
            frame_stride=options.frame_stride,
            object_class=options.object_class,
        )
        if self._out is not None:
            self._directory_of(member)  # a place that cannot be written is known before the work
        return VideoJob(
            path=source.path,
            video_id=source.video_id,
            gallery_id=member.gallery_id,
            tracks=tracks,
            submitted_at=now(),
            options=CropOptions(
                crops_per_person=self.settings.crops_per_person,
                crops_embedded=self.settings.clustering.num_best_crops,
                min_track_frames=self.settings.min_track_frames,
                top_persons=self.settings.top_persons,
            ),
            similarity_threshold=self.settings.clustering.similarity_threshold,
        )

    async def _match(self, event: PersonEmbedding | VideoClosed) -> None:
        gallery = self._galleries.get(event.gallery_id)
        if gallery is None:
            limit = self.settings.limits.max_persons_per_gallery
            gallery = self._galleries[event.gallery_id] = Gallery(event.gallery_id, max_persons=limit)
        threshold = self.settings.clustering.similarity_threshold
        outcome = apply(gallery, event, similarity_threshold=threshold, occurred_at=now())
        candidates = [out for out in outcome.events if isinstance(out, DuplicateCandidate)]
        self._events.setdefault(event.gallery_id, []).extend(candidates)
        gallery.write(outcome.writes)

    def _write_animation(self, video_id: str, bucket: Bucket) -> None:
        from streamproc.animation import encode_webp

        directory = self._directories[video_id]
        self._hrefs[video_id, bucket.person_id] = directory.write_webp(bucket.person_id, encode_webp(bucket.crops))

    def _directory_of(self, member: Member) -> OutputDirectory:
        from streamproc.outputs import OutputDirectory

        assert self._out is not None
        video_id = member.source.video_id
        if video_id not in self._directories:
            single = len(self.members) == 1
            self._directories[video_id] = OutputDirectory(self._out if single else self._out / video_id)
        return self._directories[video_id]

    def _conclude(self, embedder: Embedder | None) -> list[Result]:
        from streamproc.outputs import OutputDirectory

        self._note_troubles()
        done = [member for member in self.members if member.summary is not None]
        several = self._shared is not None and len(self.members) > 1
        parts = [self._result([member], embedder, several=False) for member in done]
        whole = [self._result(done, embedder, several=True)] if several and done else []
        if self._out is not None:
            written = [self._directory_of(member) for member in done]
            for directory, result, member in zip(written, parts, done, strict=True):
                self._write(directory, result, [member], several=False)
            for result in whole:
                written.append(self._directories.setdefault("", OutputDirectory(self._out)))
                self._write(written[-1], result, done, several=True)
            for directory in written:
                directory.commit()
        return whole if several else parts

    def _note_troubles(self) -> None:
        """Say once what was mended, left out, or could not be done."""
        for member in self.members:
            summary, name = member.summary, member.source.path.name
            if summary is None:
                continue
            if summary.missing_frames:
                total = summary.frame_count + summary.missing_frames
                self._note(f"{name}: the file is cut off: {summary.missing_frames} of {total} frames are missing")
            if summary.undecodable_frames:
                self._note(f"{name}: {summary.undecodable_frames} planned frames are damaged and were left out")
            if summary.problems:
                counts = ", ".join(f"{code} {count}" for code, count in sorted(summary.problems.items()))
                self._notices.append(f"{name}: of its tracks were left out or mended: {counts}")
            self._notices += [f"{name}: {hint}" for hint in summary.hints]
        failed = list(self._animation_errors.values())
        if failed:
            self._note(f"{len(failed)} animations could not be written, the first: {failed[0]}")
        if self.stop.is_set():
            self._note("interrupted: what was complete is here, the rest was not looked at")

    def _result(self, members: Sequence[Member], embedder: Embedder | None, *, several: bool) -> Result:
        gallery_id = members[0].gallery_id
        gallery = self._galleries.get(gallery_id, Gallery(gallery_id))
        named = [person_key_of(m.source.video_id, person) for m in members for person in sorted(_plan(m).tracks)]
        keys = [key for key in named if key in gallery.rows]
        persons = [gallery.rows[key].person for key in keys]
        labels = tuple(key if several else person.person_id for key, person in zip(keys, persons, strict=True))
        standing = set(keys)
        events = [e for e in self._events.get(gallery_id, ()) if {p.person_key for p in e.persons} <= standing]
        current = {tuple(sorted((a, b))) for a, b, _ in gallery.pairs()}
        candidates = [e for e in events if (e.persons[0].person_key, e.persons[1].person_key) in current]
        embeddings = np.stack([p.vector.numpy() for p in persons]) if persons else None
        if embedder is not None and embeddings is None:
            embeddings = np.zeros((0, embedder.dim), np.float32)
        return Result(
            gallery_id=gallery_id,
            person_ids=labels,
            similarity=None if embedder is None else gallery.matrix(keys),
            embeddings=embeddings if embedder is not None else None,
            candidates=tuple(sorted(candidates, key=lambda e: (-e.similarity, e.candidate_id))),
            pairs=_pairs(gallery, keys, labels, self.settings.clustering.similarity_threshold),
            skipped=tuple(skip for member in members for skip in _summary(member).skipped),
            notices=tuple(self._notices),
            partial=self._partial,
            interrupted=self.stop.is_set(),
            out=self._out,
            summary=self._run_record(members, embedder, candidate_count=len(candidates)),
        )

    def _run_record(
        self, members: Sequence[Member], embedder: Embedder | None, *, candidate_count: int
    ) -> dict[str, Any]:
        seconds = sum((member.stats.seconds for member in members), Counter[str]())
        return {
            "streamproc_version": __version__,
            "versions": {name: metadata.version(name) for name in _VERSIONS_OF} | {"python": platform.python_version()},
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "settings": self.settings.model_dump(mode="json"),
            "model": _model(embedder),
            "gallery_id": members[0].gallery_id,
            "videos": [self._video_record(member) for member in members],
            "candidate_count": candidate_count,
            "notices": list(self._notices),
            "partial": self._partial,
            "interrupted": self.stop.is_set(),
            "seconds": {stage: round(spent, 3) for stage, spent in sorted(seconds.items())}
            | {"wall": round(time.perf_counter() - self._started, 3)},
        }

    def _video_record(self, member: Member) -> dict[str, Any]:
        summary, stats, source = _summary(member), member.stats, member.source
        return {
            "video_id": source.video_id,
            "run_id": summary.run_id,
            "path": str(source.path),
            "tracks_path": str(source.tracks_path),
            "outcome": summary.outcome,
            **summary.description,
            "persons_total": stats.persons_total,
            "persons_embedded": stats.persons_embedded,
            "frames_planned": stats.frames_planned,
            "crops_cut": stats.crops_cut,
            "crops_embedded": stats.crops_embedded,
            "animations": stats.animations_done,
            "undecodable_frames": summary.undecodable_frames,
            "track_problems": dict(sorted(summary.problems.items())),
            "skipped": [{"person_id": skip.person_id, "reason": skip.reason} for skip in summary.skipped],
        }

    def _write(self, directory: OutputDirectory, result: Result, members: Sequence[Member], *, several: bool) -> None:
        """Stage the files of one gallery, or of one video's part of it."""
        from streamproc.outputs import GalleryReport

        names = ", ".join(member.source.path.name for member in members)
        directory.write_report(
            GalleryReport(
                gallery_id=result.gallery_id,
                title=f"{self._shared}: {names}" if several else names,
                timestamp=datetime.now(UTC),
                similarity_threshold=self.settings.clustering.similarity_threshold,
                persons=tuple(entry for member in members for entry in self._entries(member, several=several)),
                embedded_ids=result.person_ids,
                embeddings=result.embeddings,
                similarity=result.similarity,
                candidates=result.pairs.candidates,
                vetoed_pairs=result.pairs.vetoed,
                candidate_events=tuple(event.to_json() for event in result.candidates),
                model=result.summary["model"],
                notices=tuple(self._notices),
                run=result.summary,
            )
        )

    def _entries(self, member: Member, *, several: bool) -> Iterator[PersonEntry]:
        from streamproc.outputs import PersonEntry

        gallery, video_id = self._galleries.get(member.gallery_id), member.source.video_id
        plan, summary = _plan(member), _summary(member)
        cut = plan.tracks.keys() - {skip.person_id for skip in summary.skipped}
        for person_id in sorted(cut):
            track, key = plan.tracks[person_id], person_key_of(video_id, person_id)
            row = None if gallery is None else gallery.rows.get(key)
            href = self._hrefs.get((video_id, person_id))
            if href is not None and several:
                href = f"../{video_id}/webp_viewer/{href}"
            ends = [int(track.frame_indices[0]), int(track.frame_indices[-1])]
            yield PersonEntry(
                id=key if several else person_id,
                video_name=member.source.path.name,
                frames_tracked=len(track),
                first_frame_index=ends[0],
                last_frame_index=ends[1],
                first_seen_seconds=float(summary.pts_seconds[ends[0]]),
                last_seen_seconds=float(summary.pts_seconds[ends[1]]),
                crop_count=plan.crop_count[person_id],
                best_quality=row.person.crops[0].quality if row is not None and row.person.crops else 0.0,
                webp=href,
                webp_error=None
                if href
                else self._animation_errors.get((video_id, person_id), "animations were not asked for"),
            )


def _pairs(gallery: Gallery, keys: Sequence[str], labels: Sequence[int | str], threshold: float) -> Pairs:
    """All pairs above the threshold, the standing candidates apart from those with a veto, most similar first."""
    from streamproc.outputs import Pair

    label_of = dict(zip(keys, labels, strict=True))
    matrix = np.triu(gallery.matrix(keys), 1) if keys else np.zeros((0, 0), np.float32)
    candidates = [
        Pair(label_of[a], label_of[b], n.similarity) for a, b, n in gallery.pairs() if {a, b} <= label_of.keys()
    ]
    vetoed = []
    for i, j in np.argwhere(matrix > threshold - 1e-4).tolist():
        a, b = gallery.rows[keys[i]].person, gallery.rows[keys[j]].person
        if has_veto(a, b) and (similarity := pair_similarity(a, b)) > threshold:
            vetoed.append(Pair(labels[i], labels[j], similarity))
    return Pairs(*(tuple(sorted(found, key=lambda pair: -pair.similarity)) for found in (candidates, vetoed)))


def _summary(member: Member) -> VideoSummary:
    assert member.summary is not None
    return member.summary


def _plan(member: Member) -> Plan:
    return _summary(member).plan


def _model(embedder: Embedder | None) -> dict[str, Any] | None:
    if embedder is None:
        return None
    return {
        "name": embedder.name,
        "architecture": "osnet",
        "weights_sha256": embedder.weights_sha256,
        "dim": embedder.dim,
    }
