"""One video as a job: what is to be done with it, and the events that say what came of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from streamproc.crops import CropOptions
from streamproc.events import (
    CropInfo,
    PersonEmbedding,
    Segments,
    SkippedPerson,
    SuspectPart,
    TrackSuspect,
    Trajectory,
    Vector,
    VideoClosed,
    VideoOptions,
)
from streamproc.ids import person_key_of, run_id_of
from streamproc.reid import person_vector

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from streamproc.events import ModelInfo
    from streamproc.pipeline.parts import Split
    from streamproc.pipeline.pipeline import VideoSummary
    from streamproc.settings import Settings
    from streamproc.tracks import TrackSource
    from streamproc.types import Bucket, Crop, Float32Array, Skipped, TrackSpan
    from streamproc.video import Video

Published: TypeAlias = PersonEmbedding | TrackSuspect | VideoClosed
"""What a pipeline publishes."""
RunOutcome: TypeAlias = Literal["done", "cancelled", "failed"]

MAX_SEGMENTS = 4
MAX_FRAMES_PER_SECOND = 1e6
"""Time stamps that say more are no times."""


class Stop(asyncio.Event):
    """Set, it ends videos early: what is begun is finished, and the outcome is `outcome`."""

    outcome: Literal["cancelled", "failed"] = "cancelled"


@dataclass(frozen=True, slots=True, eq=False)
class VideoJob:
    """What is to be done with one video. Made by replay or by a service.

    `sha256` is that of the file in lower case; None: the pipeline computes it. `started_at` is when
    this run was begun, where an earlier one of the same submission may have died. `named_run_id` is
    that of an earlier run, whose tracks were kept: what follows from them is of that run.
    `keep_tracks` is awaited with the run's id once all tracks of a video were found in its frames,
    before its `video-closed`; not where it was cut short. `before_closing` is awaited with what
    became of the video, when all but its `video-closed` is published.
    """

    path: Path
    video_id: str
    gallery_id: str
    tracks: TrackSource
    submitted_at: str
    options: CropOptions
    similarity_threshold: float
    recorded_at: str | None = None
    camera_id: str | None = None
    sha256: str | None = None
    started_at: str | None = None
    named_run_id: str | None = None
    keep_tracks: Callable[[str], Awaitable[None]] | None = None
    before_closing: Callable[[VideoSummary], Awaitable[None]] | None = None

    def run_id(self, video_sha256: str, tracks_identity: str, weights_sha256: str) -> str:
        """Return the id of the run that takes what has these hashes."""
        if self.named_run_id is not None:
            return self.named_run_id
        options = [getattr(self.options, name) for name in self.options.__slots__]
        return run_id_of(
            video_id=self.video_id,
            video_sha256=video_sha256,
            tracks_identity=tracks_identity,
            options=[*options, self.similarity_threshold],
            weights_sha256=weights_sha256,
        )


def crop_options(settings: Settings, asked: VideoOptions | None = None) -> CropOptions:
    """Return what is cut and embedded: what an event asks for, else what the settings say."""
    asked = asked or VideoOptions()

    def first_given(value: int | None, default: int) -> int:
        return default if value is None else value

    return CropOptions(
        crops_per_person=first_given(asked.crops_per_person, settings.crops_per_person),
        crops_embedded=first_given(asked.crops_embedded, settings.clustering.num_best_crops),
        min_track_frames=first_given(asked.min_track_frames, settings.min_track_frames),
        top_persons=first_given(asked.top_persons, settings.top_persons),
        split_tracks=settings.clustering.split_tracks,
    )


@dataclass(frozen=True, slots=True, eq=False)
class TrackedPerson:
    """A person whose crops are complete: the bucket, the track's extent, who was seen apart.

    `revision` and `is_final` are of a track that is published while it grows, else None. `part` and
    `seen_with_keys` are of a part of a track, as on the wire.
    """

    bucket: Bucket
    span: TrackSpan
    seen_with: tuple[int, ...]
    revision: int | None = None
    is_final: bool | None = None
    part: int | None = None
    seen_with_keys: tuple[str, ...] | None = None

    @property
    def person_id(self) -> int:
        """The tracker's id."""
        return self.bucket.person_id


def person_event(
    job: VideoJob,
    run_id: str,
    video: Video,
    person: TrackedPerson,
    vectors: Float32Array,
    model: ModelInfo,
) -> PersonEmbedding:
    """Say what was seen of one person; `vectors` (n, dim) are those of its embedded crops."""
    bucket = person.bucket
    first = person.span.first_frame_index
    last = person.span.last_frame_index
    pts_seconds = video.frame_table.pts_seconds
    return PersonEmbedding.make(
        gallery_id=job.gallery_id,
        video_id=job.video_id,
        run_id=run_id,
        submitted_at=job.submitted_at,
        person_id=bucket.person_id,
        person_key=person_key_of(job.video_id, bucket.person_id, person.part),
        vector=Vector.of(person_vector(vectors)),
        model=model,
        crops=[_crop_info(bucket.crops[index]) for index in bucket.embedded],
        crop_count=len(bucket.crops),
        segments=_segments(bucket, vectors),
        first_frame_index=first,
        last_frame_index=last,
        first_seen_seconds=round(float(pts_seconds[first]), 6),
        last_seen_seconds=round(float(pts_seconds[last]), 6),
        frames_tracked=person.span.box_count,
        seen_with=list(person.seen_with),
        similarity_threshold=job.similarity_threshold,
        recorded_at=job.recorded_at,
        camera_id=job.camera_id,
        trajectory=_trajectory(person, video),
        started_at=job.started_at,
        revision=person.revision,
        final=person.is_final,
        part=person.part,
        seen_with_keys=None if person.seen_with_keys is None else list(person.seen_with_keys),
    )


def suspect_event(
    job: VideoJob, run_id: str, video: Video, split: Split, model: ModelInfo
) -> TrackSuspect:
    """Say that a track seems to hold two people, and what its parts are."""
    person_id = split.parts[0].person_id
    first, second = (_suspect_part(job, video, part) for part in split.parts)
    return TrackSuspect.make(
        gallery_id=job.gallery_id,
        video_id=job.video_id,
        run_id=run_id,
        submitted_at=job.submitted_at,
        person_id=person_id,
        person_key=person_key_of(job.video_id, person_id),
        frame_index=split.frame_index,
        seconds=round(float(video.frame_table.pts_seconds[split.frame_index]), 6),
        probability=round(split.probability, 2),
        parts=(first, second),
        model=model,
    )


def _suspect_part(job: VideoJob, video: Video, part: TrackedPerson) -> SuspectPart:
    span = part.span
    pts_seconds = video.frame_table.pts_seconds
    best = part.bucket.crops[part.bucket.embedded[0]]
    return SuspectPart(
        person_key=person_key_of(job.video_id, part.person_id, part.part),
        first_frame_index=span.first_frame_index,
        last_frame_index=span.last_frame_index,
        first_seen_seconds=round(float(pts_seconds[span.first_frame_index]), 6),
        last_seen_seconds=round(float(pts_seconds[span.last_frame_index]), 6),
        frames_tracked=span.box_count,
        crop_count=len(part.bucket.crops),
        best_crop=_crop_info(best),
    )


def closed_event(
    job: VideoJob,
    run_id: str,
    video: Video,
    outcome: RunOutcome,
    published: Mapping[int, int | None],
    skipped: Iterable[Skipped],
    part_keys: Iterable[str] = (),
) -> VideoClosed:
    """Say that a video has ended, with the persons that were `published` and their revisions.

    `part_keys` are the person keys of parts of tracks.
    """
    person_ids = sorted(published)
    revisions = [revision for _, revision in sorted(published.items()) if revision is not None]
    parts = sorted(part_keys)
    whole = [person_key_of(job.video_id, person_id) for person_id in person_ids]
    return VideoClosed.make(
        gallery_id=job.gallery_id,
        video_id=job.video_id,
        run_id=run_id,
        submitted_at=job.submitted_at,
        outcome=outcome,
        person_ids=person_ids,
        revisions=revisions if len(revisions) == len(person_ids) > 0 else None,
        skipped=[SkippedPerson(person_id=skip.person_id, reason=skip.reason) for skip in skipped],
        frame_count=video.frame_count,
        truncated=video.missing_frames > 0,
        started_at=job.started_at,
        person_keys=[*whole, *parts] if parts else None,
    )


def _crop_info(crop: Crop) -> CropInfo:
    x0, y0, x1, y1 = crop.box_xyxy
    return CropInfo(
        frame_index=crop.frame_index,
        pts_seconds=round(crop.pts_seconds, 6),
        box_xyxy=(round(x0, 2), round(y0, 2), round(x1, 2), round(y1, 2)),
        quality=crop.quality,
    )


def _trajectory(person: TrackedPerson, video: Video) -> Trajectory | None:
    """Return where a person was, None where the time between frames is not known."""
    pts_seconds = video.frame_table.pts_seconds
    seconds = float(pts_seconds[-1] - pts_seconds[0])
    frames_per_second = round((len(pts_seconds) - 1) / seconds, 6) if seconds > 0 else 0.0
    if not 0 < frames_per_second <= MAX_FRAMES_PER_SECOND:
        return None
    boxes = person.span.trajectory
    return Trajectory.of(
        boxes.frame_indices.tolist(),
        boxes.boxes_xyxy,
        width_px=video.width,
        height_px=video.height,
        frames_per_second=frames_per_second,
    )


def _segments(bucket: Bucket, vectors: Float32Array) -> Segments:
    """Unit means of up to four consecutive parts of the embedded crops, in time order."""
    in_time = np.argsort(np.array(bucket.embedded))
    parts = np.array_split(in_time, min(MAX_SEGMENTS, len(in_time)))
    means = np.stack([person_vector(vectors[part]) for part in parts])
    return Segments.of(means, [len(part) for part in parts])
