"""Replay: the stages of the stream in one process, with files where the stream has topics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from streamproc.errors import InputError, TracksError, UsageError, VideoError, WeightsError
from streamproc.events import DuplicateCandidate, PersonEmbedding, VideoClosed, now
from streamproc.gallery import UNCALIBRATED, apply
from streamproc.ids import video_id_of
from streamproc.offline.results import (
    Findings,
    Member,
    Result,
    Source,
    report_of,
    result_of,
    versions,
)
from streamproc.pipeline.job import VideoJob
from streamproc.pipeline.pipeline import Pipeline, Stop
from streamproc.pipeline.resources import calibration_of, load_network, video_limits
from streamproc.tracks import find_track_file, load_tracks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamproc.offline.directory import OutputDirectory
    from streamproc.pipeline.animate import RunIds
    from streamproc.reid import Embedder
    from streamproc.settings import Settings
    from streamproc.types import Bucket


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """How track files are read; None takes what each format says."""

    first_frame_number: int | None = None
    frame_stride: int | None = None
    object_class: int | None = None


def find_sources(videos: Sequence[Path], persons: Sequence[Path]) -> list[Source]:
    """Pair videos with their track files, and name them; raises UsageError or TracksError."""
    if persons and len(persons) != len(videos):
        raise UsageError(
            f"expected one --persons for each of the {len(videos)} videos, got {len(persons)}"
        )
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
    """One replay of some videos: run it with `await run()`.

    `members` tell how far it is meanwhile.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: Settings,
        *,
        gallery: str | None = None,
        out: Path | None = None,
        tracks: TrackOptions = TrackOptions(),
    ) -> None:
        self.members = [Member(source, gallery or source.video_id) for source in sources]
        self.stop = Stop()
        self._found = Findings(settings, gallery, out)
        self._track_options = tracks
        self._calibration = UNCALIBRATED  # until there is a network
        self._started = time.perf_counter()
        self._directories: dict[str, OutputDirectory] = {}

    async def run(self) -> list[Result]:
        """Process all videos and write the files; one result a gallery.

        A bad video among several is noted and the others go on; where none is left, the InputErrors
        are raised as one. A cancelled run leaves no files.
        """
        try:
            async with self._pipeline() as pipeline:
                for member in self.members:
                    if not self.stop.is_set():
                        await self._process(pipeline, member)
            if pipeline.embed is not None:
                self.members[0].stats.seconds.update(pipeline.embed.seconds)
            if pipeline.animate is not None:
                self._found.animation_errors = pipeline.animate.errors
            self._found.interrupted = self.stop.is_set()
            return (
                self._conclude()
            )  # on the loop: nothing else waits for it, and a signal cannot cut it
        finally:
            for directory in self._directories.values():
                directory.abort()  # nothing, after commit

    def _load_network(self) -> Embedder | None:
        settings = self._found.settings
        if not settings.clustering.enabled:
            self._note("similarity was skipped: clustering.enabled is false")
            return None
        try:
            self._calibration = calibration_of(settings.clustering)
            self._found.embedder = load_network(settings)
        except WeightsError as error:
            self._note(f"similarity was skipped: {error}")
        return self._found.embedder

    def _note(self, notice: str) -> None:
        """Something asked for was not done: shown, written down, and exit code 4."""
        self._found.partial = True
        self._found.notices.append(notice)

    def _pipeline(self) -> Pipeline:
        settings = self._found.settings
        return Pipeline(
            load_network=self._load_network,
            publish=self._match,
            write_animation=self._write_animation
            if settings.animate and self._found.out is not None
            else None,
            crop_memory_bytes=settings.crop_memory_mib * 1024 * 1024,
            limits=video_limits(settings),
            decode_threads=settings.threads,
        )

    async def _process(self, pipeline: Pipeline, member: Member) -> None:
        try:
            job = await asyncio.to_thread(self._job, member)
            pipeline.threads.animation.submit(
                self._prepare, member
            )  # the pipeline's end waits for it
            member.summary = await pipeline.process(job, member.stats, self.stop)
        except InputError as error:
            member.error = error

    def _job(self, member: Member) -> VideoJob:
        from streamproc.crops import CropOptions

        source, options, settings = member.source, self._track_options, self._found.settings
        if self._found.out is not None:
            self._directory_of(member)  # a place that cannot be written is known before the work
        return VideoJob(
            path=source.path,
            video_id=source.video_id,
            gallery_id=member.gallery_id,
            load_tracks=partial(
                load_tracks,
                source.tracks_path,
                first_frame_number=options.first_frame_number,
                frame_stride=options.frame_stride,
                object_class=options.object_class,
            ),
            submitted_at=now(),
            options=CropOptions(
                crops_per_person=settings.crops_per_person,
                crops_embedded=settings.clustering.num_best_crops,
                min_track_frames=settings.min_track_frames,
                top_persons=settings.top_persons,
            ),
            similarity_threshold=settings.clustering.similarity_threshold,
        )

    def _prepare(self, member: Member) -> None:
        """Do what the end needs and does not depend on it, while the other core has nothing to do yet."""
        versions()
        if self._found.out is not None:
            self._directory_of(member).prepare()

    async def _match(self, event: PersonEmbedding | VideoClosed) -> None:
        gallery = self._found.gallery_of(event.gallery_id)
        threshold = self._found.settings.clustering.similarity_threshold
        outcome = apply(
            gallery,
            event,
            similarity_threshold=threshold,
            occurred_at=now(),
            calibration=self._calibration,
        )
        candidates = [out for out in outcome.events if isinstance(out, DuplicateCandidate)]
        self._found.events.setdefault(event.gallery_id, []).extend(candidates)
        gallery.write(outcome.writes)

    def _write_animation(self, run: RunIds, bucket: Bucket) -> None:
        from streamproc.animation import encode_webp

        directory = self._directories[run.video_id]
        self._found.hrefs[run.video_id, bucket.person_id] = directory.write_webp(
            bucket.person_id, encode_webp(bucket.crops)
        )

    def _directory_of(self, member: Member) -> OutputDirectory:
        from streamproc.offline.directory import OutputDirectory

        assert self._found.out is not None
        video_id = member.source.video_id
        if video_id not in self._directories:
            single = len(self.members) == 1
            self._directories[video_id] = OutputDirectory(
                self._found.out if single else self._found.out / video_id
            )
        return self._directories[video_id]

    def _conclude(self) -> list[Result]:
        from streamproc.offline.directory import OutputDirectory

        done = [member for member in self.members if member.summary is not None]
        errors = [member.error for member in self.members if member.error is not None]
        if errors and not done:
            raise errors[0] if len(errors) == 1 else InputError("; ".join(map(str, errors)))
        self._note_troubles()
        found, several = (
            self._found,
            self._found.shared_gallery is not None and len(self.members) > 1,
        )
        wall_seconds = time.perf_counter() - self._started
        parts = [
            result_of(found, [member], several=False, wall_seconds=wall_seconds) for member in done
        ]
        whole = (
            [result_of(found, done, several=True, wall_seconds=wall_seconds)]
            if several and done
            else []
        )
        if found.out is not None:
            written = [self._directory_of(member) for member in done]
            for directory, result, member in zip(written, parts, done, strict=True):
                directory.write_report(report_of(found, result, [member], several=False))
            for result in whole:
                written.append(self._directories.setdefault("", OutputDirectory(found.out)))
                written[-1].write_report(report_of(found, result, done, several=True))
            for directory in written:
                directory.commit()
        return whole if several else parts

    def _note_troubles(self) -> None:
        """Say once what was mended, left out, or could not be done."""
        for member in self.members:
            summary, name = member.summary, member.source.path.name
            if member.error is not None:
                self._note(str(member.error))
            if summary is None:
                continue
            if summary.missing_frames:
                total = summary.frame_count + summary.missing_frames
                self._note(
                    f"{name}: the file is cut off: {summary.missing_frames} of {total} frames are missing"
                )
            if summary.undecodable_frames:
                self._note(
                    f"{name}: {summary.undecodable_frames} planned frames are damaged and were left out"
                )
            if summary.problems:
                counts = ", ".join(
                    f"{code} {count}" for code, count in sorted(summary.problems.items())
                )
                self._found.notices.append(
                    f"{name}: of its tracks were left out or mended: {counts}"
                )
            self._found.notices += [f"{name}: {hint}" for hint in summary.hints]
        failed = list(self._found.animation_errors.values())
        if failed:
            self._note(f"{len(failed)} animations could not be written, the first: {failed[0]}")
        if self.stop.is_set():
            self._note("interrupted: what was complete is here, the rest was not looked at")
