"""One video as a job: what is to be done with it, and the events that say what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from streamproc.events import (
    CropInfo,
    PersonEmbedding,
    Segments,
    SkippedPerson,
    Vector,
    VideoClosed,
)
from streamproc.ids import hash_of, person_key_of
from streamproc.reid import person_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from streamproc.crops import CropOptions, Plan
    from streamproc.events import ModelInfo
    from streamproc.types import Bucket, Crop, Float32Array, Skipped, TrackSet
    from streamproc.video import Video

Outcome: TypeAlias = Literal["done", "cancelled", "failed"]

MAX_SEGMENTS = 4


@dataclass(frozen=True, slots=True, eq=False)
class VideoJob:
    """What is to be done with one video. Made by replay or the worker.

    `load_tracks` is called once, in a thread, when the video is open; what it returns is let go
    after the planning.
    """

    path: Path
    video_id: str
    gallery_id: str
    load_tracks: Callable[[], TrackSet]
    submitted_at: str
    options: CropOptions
    similarity_threshold: float
    recorded_at: str | None = None
    camera_id: str | None = None

    def run_id(self, video_sha256: str, tracks_sha256: str, weights_sha256: str) -> str:
        """The id of the run that takes what has these hashes."""
        options = [getattr(self.options, name) for name in self.options.__slots__]
        return hash_of(
            self.video_id,
            video_sha256,
            tracks_sha256,
            options,
            self.similarity_threshold,
            weights_sha256,
        )


def person_event(
    job: VideoJob,
    run_id: str,
    video: Video,
    plan: Plan,
    bucket: Bucket,
    vectors: Float32Array,
    model: ModelInfo,
) -> PersonEmbedding:
    """Say what was seen of one person.

    `vectors` (n, dim) are those of the bucket's embedded crops.
    """
    track = plan.tracks[bucket.person_id]
    first, last = track.first_frame_index, track.last_frame_index
    seconds = video.frame_table.pts_seconds
    return PersonEmbedding.make(
        gallery_id=job.gallery_id,
        video_id=job.video_id,
        run_id=run_id,
        submitted_at=job.submitted_at,
        person_id=bucket.person_id,
        person_key=person_key_of(job.video_id, bucket.person_id),
        vector=Vector.of(person_vector(vectors)),
        model=model,
        crops=[_crop_info(bucket.crops[i]) for i in bucket.embedded],
        crop_count=len(bucket.crops),
        segments=_segments(bucket, vectors),
        first_frame_index=first,
        last_frame_index=last,
        first_seen_seconds=round(float(seconds[first]), 6),
        last_seen_seconds=round(float(seconds[last]), 6),
        frames_tracked=track.box_count,
        seen_with=list(plan.seen_with.get(bucket.person_id, ())),
        similarity_threshold=job.similarity_threshold,
        recorded_at=job.recorded_at,
        camera_id=job.camera_id,
    )


def closed_event(
    job: VideoJob,
    run_id: str,
    video: Video,
    outcome: Outcome,
    person_ids: Iterable[int],
    skipped: Iterable[Skipped],
) -> VideoClosed:
    """Say that a video has ended, with the persons that were published."""
    return VideoClosed.make(
        gallery_id=job.gallery_id,
        video_id=job.video_id,
        run_id=run_id,
        submitted_at=job.submitted_at,
        outcome=outcome,
        person_ids=sorted(person_ids),
        skipped=[SkippedPerson(person_id=s.person_id, reason=s.reason) for s in skipped],
        frame_count=video.frame_count,
        truncated=video.missing_frames > 0,
    )


def _crop_info(crop: Crop) -> CropInfo:
    x0, y0, x1, y1 = crop.box_xyxy
    return CropInfo(
        frame_index=crop.frame_index,
        pts_seconds=round(crop.pts_seconds, 6),
        box_xyxy=(round(x0, 2), round(y0, 2), round(x1, 2), round(y1, 2)),
        quality=crop.quality,
    )


def _segments(bucket: Bucket, vectors: Float32Array) -> Segments:
    """Unit means of up to four consecutive parts of the embedded crops, in time order."""
    in_time = np.argsort(np.array(bucket.embedded))
    parts = np.array_split(in_time, min(MAX_SEGMENTS, len(in_time)))
    return Segments.of(
        np.stack([person_vector(vectors[part]) for part in parts]), [len(part) for part in parts]
    )
