"""Builds small events for tests: persons with vectors of a few numbers."""

from __future__ import annotations

import numpy as np

from streamproc.events import CropInfo, ModelInfo, PersonEmbedding, Segments, Vector, VideoClosed
from streamproc.ids import person_key_of


def unit_vector(values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values / np.linalg.norm(values)


def person(
    person_id,
    vector,
    *,
    video_id="v",
    gallery_id="g",
    run="r1",
    minute=0,
    seen_with=(),
    weights="a" * 64,
    normalise=True,
    seconds=(0.0, 1.0),
    similarity_threshold=None,
    segments=None,
    crops=0,
) -> PersonEmbedding:
    values = unit_vector(vector) if normalise else np.asarray(vector, np.float64)
    return PersonEmbedding.make(
        gallery_id=gallery_id,
        video_id=video_id,
        run_id=run,
        submitted_at=f"2026-11-24T{9 + minute // 60:02}:{minute % 60:02}:00Z",
        person_id=person_id,
        person_key=person_key_of(video_id, person_id),
        vector=Vector.of(values),
        model=ModelInfo(name="test", weights_sha256=weights),
        crops=[
            CropInfo(frame_index=i, pts_seconds=i, box_xyxy=(0, 0, 10, 20), quality=1)
            for i in range(crops)
        ],
        crop_count=crops or 8,
        segments=None
        if segments is None
        else Segments.of(np.asarray(segments), [1] * len(segments)),
        first_frame_index=0,
        last_frame_index=10,
        first_seen_seconds=seconds[0],
        last_seen_seconds=seconds[1],
        frames_tracked=11,
        seen_with=list(seen_with),
        similarity_threshold=similarity_threshold,
    )


def closed(person_ids, *, video_id="v", run="r1", minute=0, outcome="done") -> VideoClosed:
    return VideoClosed.make(
        gallery_id="g",
        video_id=video_id,
        run_id=run,
        submitted_at=f"2026-11-24T{9 + minute // 60:02}:{minute % 60:02}:00Z",
        outcome=outcome,
        person_ids=list(person_ids),
        frame_count=11,
    )


def two_videos(rng, count, *, parts=False, weights=("a" * 64,)) -> list[PersonEmbedding]:
    """Persons of the videos v and w with random vectors (some equal) and vetoes; with parts of tracks if asked."""
    events = []
    for video in ("v", "w"):
        for i in range(count):
            vector = unit_vector([*rng.normal(size=3).round(1), 0.05, 0, 0])
            others = [int(j) for j in range(count) if j != i and rng.random() < 0.2]
            own = [
                unit_vector(vector + 0.1 * rng.normal(size=len(vector)))
                for _ in range(rng.integers(1, 5))
            ]
            kept = own if parts and rng.random() < 0.8 else None
            made_by = weights[0] if rng.random() < 0.9 else weights[-1]
            events.append(
                person(i, vector, video_id=video, seen_with=others, segments=kept, weights=made_by)
            )
    return events
