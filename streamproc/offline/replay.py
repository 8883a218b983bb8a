"""Replay: the stages of the stream in one process, with files where the stream has topics."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from streamproc.errors import InputError, MachineError, UsageError, WeightsError
from streamproc.events import (
    DuplicateCandidate,
    DuplicateGroup,
    Id,
    TrackSuspect,
    now,
)
from streamproc.files import on_one_line
from streamproc.gallery import UNCALIBRATED, apply
from streamproc.ids import person_key_of
from streamproc.offline.past_decisions import PastDecisions, lines_of, read_past, tracks_of
from streamproc.offline.replay_folder import (
    DECISIONS_NAME,
    FOUND_TRACKS_NAME,
    NOT_CARRIED_NAME,
)
from streamproc.offline.results import (
    ReplayState,
    ReplayVideo,
    Result,
    report_of,
    result_of,
    versions,
    video_record,
)
from streamproc.offline.sources import require_tracks
from streamproc.pipeline.job import Stop, VideoJob, crop_options
from streamproc.pipeline.pipeline import Pipeline
from streamproc.pipeline.resources import (
    calibration_of,
    finding_options,
    load_detector,
    load_network,
    video_limits,
)
from streamproc.tracks import problem_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from streamproc.gallery.linking.purity import TrackJudge
    from streamproc.offline.directory import OutputDirectory
    from streamproc.offline.sources import ReplaySource
    from streamproc.pipeline.animate import RunIds
    from streamproc.pipeline.job import Published
    from streamproc.pipeline.parts import Split
    from streamproc.pipeline.pipeline import VideoSummary
    from streamproc.reid import Embedder
    from streamproc.settings import Settings
    from streamproc.tracks import TracksFound
    from streamproc.tracks.detection.detector import Detector
    from streamproc.types import Bucket


def _embed_seconds(pipeline: Pipeline) -> Counter[str]:
    """How long the network was busy so far, in all videos."""
    return Counter() if pipeline.embed is None else Counter(pipeline.embed.seconds)


def _check_gallery(gallery: str) -> None:
    try:
        TypeAdapter(Id).validate_python(gallery)
    except ValidationError as error:
        raise UsageError(
            f"gallery {on_one_line(gallery):.60}: expected 1 to 256 characters of UTF-8, "
            "without control characters"
        ) from error


class Replay:
    """One replay of some videos: run it with `await run()`.

    `decisions` is a file of them on an earlier run; those in the folder `out` are read as well.
    What reviewers called different is not listed again.

    `videos` say how far it is meanwhile. Setting `stop` ends it early, with what is complete.
    """

    def __init__(
        self,
        sources: Sequence[ReplaySource],
        settings: Settings,
        *,
        gallery: str | None = None,
        out: Path | None = None,
        decisions: Path | None = None,
        save_tracks: Path | None = None,
    ) -> None:
        if not settings.detector.enabled:
            require_tracks(sources)
        if save_tracks is not None and [source.tracks for source in sources] != [None]:
            raise UsageError(
                "--save-tracks: expected one video whose tracks are to be found: name one video, "
                "with --detect if it has a track file"
            )
        if gallery is not None:
            _check_gallery(gallery)
        self.videos = [ReplayVideo(source, gallery or source.video_id) for source in sources]
        self.stop = Stop()
        self._state = ReplayState(settings, gallery, out)
        self._named_decisions = decisions
        self._past = PastDecisions()
        self._save_tracks = save_tracks
        self._detector: Detector | None = None
        self._calibration = UNCALIBRATED  # until the network is loaded
        self._started = time.perf_counter()
        self._directories: dict[str, OutputDirectory] = {}

    async def run(self) -> list[Result]:
        """Process all videos and write the files; return one result for each gallery.

        A bad video among several is noted, and the others are processed; where none is left, the
        InputErrors are raised as one. A cancelled run leaves no files.
        """
        self._past = read_past(self._folders(), self._named_decisions)
        try:
            async with self._pipeline() as pipeline:
                for video in self.videos:
                    if not self.stop.is_set():
                        await self._process(pipeline, video)
            if pipeline.animate is not None:
                self._state.animation_errors = pipeline.animate.errors
            self._state.interrupted = self.stop.is_set()
            # Not in a thread: nothing else waits for the loop now, and a signal cannot cut it off.
            return self._conclude()
        finally:
            for directory in self._directories.values():
                directory.abort()  # does nothing after a commit
            for video in self.videos:
                if video.record is not None:
                    video.record.close()

    def _pipeline(self) -> Pipeline:
        settings = self._state.settings
        with_animations = settings.animate and self._state.out is not None
        return Pipeline(
            load_network=self._load_network,
            publish=self._match,
            write_animation=self._write_animation if with_animations else None,
            crop_memory_bytes=settings.crop_memory_mib * 1024 * 1024,
            limits=video_limits(settings),
            decode_threads=settings.threads,
            load_judge=self._track_judge,
            show_parts=None if self._state.out is None else self._keep_stills,
        )

    def _track_judge(self, weights_sha256: str) -> TrackJudge | None:
        """Return what tells tracks that hold two people; the calibration is loaded by then."""
        curve = self._calibration.curves.get(weights_sha256)
        return None if curve is None else curve.track_judge

    def _load_network(self) -> Embedder | None:
        settings = self._state.settings
        if not settings.clustering.enabled:
            self._note("similarity was skipped: clustering.enabled is false")
            return None
        try:
            self._calibration = calibration_of(settings.clustering)
            self._state.embedder = load_network(settings)
        except WeightsError as error:
            self._note(f"similarity was skipped: {error}")
        return self._state.embedder

    async def _process(self, pipeline: Pipeline, video: ReplayVideo) -> None:
        spent_before = _embed_seconds(pipeline)
        try:
            job = await asyncio.to_thread(self._job, video)
            # The pipeline waits for its threads before it ends, so also for this.
            pipeline.threads.animation.submit(self._prepare, video)
            video.summary = await pipeline.process(job, video.stats, self.stop)
        except InputError as error:
            video.error = error
        finally:
            # Videos are processed one after the other.
            spent = _embed_seconds(pipeline)
            spent.subtract(spent_before)
            video.stats.seconds.update(spent)

    def _job(self, video: ReplayVideo) -> VideoJob:
        settings = self._state.settings
        if self._state.out is not None:
            # Made before the work, so that a place that cannot be written to is found at once.
            self._directory_of(video)
        return VideoJob(
            path=video.source.path,
            video_id=video.source.video_id,
            gallery_id=video.gallery_id,
            tracks=video.source.tracks or self._found(video),
            submitted_at=now(),
            options=crop_options(settings),
            similarity_threshold=settings.clustering.similarity_threshold,
        )

    def _found(self, video: ReplayVideo) -> TracksFound:
        """Return the tracks of a video that has none; loads the detector for the first of them."""
        from streamproc.tracks.detection.found import tracks_found
        from streamproc.tracks.detection.record import TrackRecord

        settings = self._state.settings
        if self._detector is None:
            self._detector = load_detector(settings)
        video.detector = self._detector
        if self._state.out is not None:
            video.tracks_written = self._directory_of(video).path / FOUND_TRACKS_NAME
        if self._state.out is not None or self._save_tracks is not None:
            video.record = TrackRecord()
        return tracks_found(self._detector, finding_options(settings), video.record)

    def _prepare(self, video: ReplayVideo) -> None:
        """Do early what the report needs whatever is found, while a core is still idle."""
        versions()
        if self._state.out is not None:
            self._directory_of(video).prepare()

    async def _match(self, event: Published) -> None:
        if isinstance(event, TrackSuspect):
            self._state.suspects.setdefault(event.gallery_id, []).append(event)
            return
        gallery = self._state.gallery_of(event.gallery_id)
        result = apply(
            gallery,
            event,
            similarity_threshold=self._state.settings.clustering.similarity_threshold,
            occurred_at=now(),
            calibration=self._calibration,
        )
        candidates = self._state.candidates.setdefault(event.gallery_id, [])
        candidates += [out for out in result.events if isinstance(out, DuplicateCandidate)]
        groups = self._state.groups.setdefault(event.gallery_id, [])
        groups += [out for out in result.events if isinstance(out, DuplicateGroup)]
        gallery.write(result.writes)

    def _write_animation(self, run: RunIds, bucket: Bucket) -> None:
        from streamproc.animation import encode_strip, encode_webp

        directory = self._directories[run.video_id]
        href = directory.write_webp(bucket.person_id, encode_webp(bucket.crops))
        self._state.hrefs[run.video_id, bucket.person_id] = href
        href = directory.write_strip(bucket.person_id, encode_strip(bucket.best_crops))
        self._state.strip_hrefs[run.video_id, bucket.person_id] = href

    def _keep_stills(self, video_id: str, split: Split) -> None:
        """Keep the best picture of each part of a track, for the page."""
        from streamproc.animation import encode_webp

        for part in split.parts:
            key = person_key_of(video_id, part.person_id, part.part)
            best = part.bucket.crops[part.bucket.embedded[0]]
            self._state.stills[key] = encode_webp((best,))

    def _directory_of(self, video: ReplayVideo) -> OutputDirectory:
        """Return the directory of one video, made where there is none yet."""
        from streamproc.offline.directory import OutputDirectory

        out = self._state.out
        assert out is not None
        video_id = video.source.video_id
        if video_id not in self._directories:
            path = out if len(self.videos) == 1 else out / video_id
            umask = self._state.settings.umask_bits()
            self._directories[video_id] = OutputDirectory(path, umask=umask)
        return self._directories[video_id]

    def _conclude(self) -> list[Result]:
        """Make the results and write the reports."""
        done = [video for video in self.videos if video.summary is not None]
        errors = [video.error for video in self.videos if video.error is not None]
        if errors and not done:
            raise errors[0] if len(errors) == 1 else InputError("; ".join(map(str, errors)))
        self._note_problems()
        self._decide(done)
        wall_seconds = time.perf_counter() - self._started
        state = self._state
        parts = [
            result_of(state, [video], several=False, wall_seconds=wall_seconds) for video in done
        ]
        whole = None
        if state.shared_gallery is not None and len(self.videos) > 1 and done:
            whole = result_of(state, done, several=True, wall_seconds=wall_seconds)
        if state.out is not None:
            self._write(done, parts, whole, state.out)
        if self._save_tracks is not None:
            _save(done, self._save_tracks)
        return parts if whole is None else [whole]

    def _write(
        self, done: Sequence[ReplayVideo], parts: Sequence[Result], whole: Result | None, out: Path
    ) -> None:
        """Write a report for each video and one for the whole gallery, then commit all of them."""
        from streamproc.offline.directory import OutputDirectory

        written = []
        for video, part in zip(done, parts, strict=True):
            directory = self._directory_of(video)
            directory.write_report(report_of(self._state, part, [video], several=False))
            if video.record is not None:
                directory.write_tracks(video.record)
            if whole is None or (directory.path / DECISIONS_NAME).exists():
                self._write_decisions(directory, video.gallery_id)
            written.append(directory)
        if whole is not None:
            umask = self._state.settings.umask_bits()
            directory = self._directories.setdefault("", OutputDirectory(out, umask=umask))
            directory.write_report(report_of(self._state, whole, done, several=True))
            self._write_decisions(directory, whole.gallery_id)
            written.append(directory)
        for directory in written:
            directory.commit()

    # What reviewers decided before.

    def _folders(self) -> list[Path]:
        """Return the folders of earlier runs that this one may replace."""
        out = self._state.out
        if out is None:
            return []
        return [out, *(out / video.source.video_id for video in self.videos)]

    def _decide(self, done: Sequence[ReplayVideo]) -> None:
        """Find out what earlier decisions say of this run's persons, and note what is lost."""
        # Again: a review may have been open while this replay ran.
        self._past = read_past(self._folders(), self._named_decisions)
        if not self._past.files:
            return
        tracks = {video.source.video_id: tracks_of(video_record(video)) for video in done}
        for gallery_id, gallery in self._state.galleries.items():
            persons = [row.tracklet for row in gallery.rows.values()]
            decided = self._past.on(gallery_id, persons, tracks)
            self._state.decided[gallery_id] = decided
            if decided.lost:
                count = len(decided.lost) + len(decided.decisions)
                self._note(
                    f"{len(decided.lost)} of {count} decisions are on people whom these tracks do "
                    f"not have: they are in {NOT_CARRIED_NAME}"
                )
        self._note_other_galleries()

    def _note_other_galleries(self) -> None:
        for file in self._past.files:
            count = len(self._past.elsewhere(file.path, self._state.galleries))
            if count:
                self._note(
                    f"{file.path}: {count} of {len(file.decisions)} decisions are on other "
                    "galleries than this: they were left out, and are kept"
                )

    def _write_decisions(self, directory: OutputDirectory, gallery_id: str) -> None:
        decided = self._state.decided.get(gallery_id)
        if decided is None:
            return
        own = directory.path / DECISIONS_NAME
        lost = (*decided.lost, *self._past.elsewhere(own, self._state.galleries))
        directory.write_decisions(lines_of(decided.decisions), lines_of(lost))

    # What was ignored, or could not be done.

    def _note(self, notice: str) -> None:
        """Note something that was asked for and not done: shown, in run.json, and exit code 4."""
        self._state.partial = True
        self._state.notices.append(notice)

    def _note_problems(self) -> None:
        for video in self.videos:
            if video.error is not None:
                self._note(str(video.error))
            if video.summary is not None:
                for text in _losses(video.summary):
                    self._note(f"{video.name}: {text}")
                if video.detector is not None and video.stats.tracks_found:
                    self._state.notices.append(
                        f"{video.name}: {video.stats.tracks_found} tracks were found in the video "
                        f"itself (detector {video.detector.name})"
                    )
                if video.summary.parts:
                    self._state.notices.append(f"{video.name}: {_splits(video.summary)}")
                for text in _remarks(video.summary):
                    self._state.notices.append(f"{video.name}: {text}")
        failed = list(self._state.animation_errors.values())
        if failed:
            self._note(f"{len(failed)} animations could not be written, the first: {failed[0]}")
        if self.stop.is_set():
            self._note("interrupted: what was complete is here, the rest was not looked at")


def _save(videos: Sequence[ReplayVideo], path: Path) -> None:
    """Write the tracks that were found in the one video to a file of the user's."""
    for video in videos:
        assert video.record is not None
        try:
            video.record.write(path)
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error


def _losses(summary: VideoSummary) -> Iterator[str]:
    """Yield what of a video could not be used."""
    if summary.missing_frames:
        total = summary.frame_count + summary.missing_frames
        missing = summary.missing_frames
        yield f"the file is cut off: {missing} of {total} frames are missing"
    if summary.undecodable_frames:
        yield f"{summary.undecodable_frames} planned frames are damaged and were left out"


def _splits(summary: VideoSummary) -> str:
    """Say how many tracks were taken apart, and how their parts are called."""
    count = len(summary.parts)
    first = min(summary.parts)
    seem = "1 track seems" if count == 1 else f"{count} tracks seem"
    return (
        f"{seem} to hold two people and became two persons each, such as {first}#1 and {first}#2: "
        "see track_suspects.jsonl"
    )


def _remarks(summary: VideoSummary) -> Iterator[str]:
    """Yield what was wrong with the tracks of a video, and what to try."""
    for code, count in sorted(summary.problems.items()):
        yield problem_text(code, count)
    yield from summary.hints
    yield from summary.video_hints


def run_in_thread(work: Replay) -> list[Result]:
    """Run in an event loop of its own, whatever runs in the caller's thread.

    KeyboardInterrupt in the caller's thread gives the work up, and is raised when it has ended.
    """
    loop = asyncio.new_event_loop()
    ended = threading.Event()
    results: list[Result] = []
    errors: list[BaseException] = []
    task = loop.create_task(work.run())

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(_result_of(task, results))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="replay")
    thread.start()
    try:
        ended.wait()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join()
    if errors:
        raise errors[0]
    return results


async def _result_of(task: asyncio.Task[list[Result]], results: list[Result]) -> None:
    results.extend(await task)
