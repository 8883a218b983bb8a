"""Small events for tests: persons with vectors of a few numbers, and closings."""

from __future__ import annotations

import numpy as np

from streamproc.events import (
    CandidatePerson,
    CropInfo,
    DuplicateCandidate,
    DuplicateGroup,
    ModelInfo,
    PersonEmbedding,
    Segments,
    SuspectPart,
    TrackSuspect,
    Trajectory,
    Vector,
    VideoClosed,
)
from streamproc.gallery import candidate_id_of
from streamproc.gallery.pairs import group_id_of
from streamproc.ids import person_key_of


def unit_vector(values) -> np.ndarray:
    """The values scaled to length 1, as float64."""
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
    trajectory=None,
    started_at=None,
    revision=None,
    part=None,
    seen_with_keys=None,
) -> PersonEmbedding:
    """A person event; `minute` sets when its run was submitted, `crops` how many have infos."""
    values = unit_vector(vector) if normalise else np.asarray(vector, np.float64)
    return PersonEmbedding.make(
        gallery_id=gallery_id,
        video_id=video_id,
        run_id=run,
        submitted_at=f"2026-11-24T{9 + minute // 60:02}:{minute % 60:02}:00Z",
        person_id=person_id,
        person_key=person_key_of(video_id, person_id, part),
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
        trajectory=trajectory,
        started_at=started_at,
        revision=revision,
        part=part,
        seen_with_keys=None if seen_with_keys is None else list(seen_with_keys),
    )


def walk(start, count, x, speed) -> Trajectory:
    """Somebody 100 px tall who walks to the right, `speed` px a frame, at 25 frames a second."""
    frames = np.arange(start, start + count)
    left = x + speed * (frames - start)
    boxes = np.stack([left, left * 0 + 200, left + 40, left * 0 + 300], axis=1)
    size = {"width_px": 1920, "height_px": 1080, "frames_per_second": 25}
    return Trajectory.of(frames.tolist(), boxes.astype(np.float32), **size)


def closed(
    person_ids,
    *,
    video_id="v",
    run="r1",
    minute=0,
    outcome="done",
    started_at=None,
    person_keys=None,
) -> VideoClosed:
    """A closing event of a video whose run found these persons."""
    return VideoClosed.make(
        gallery_id="g",
        video_id=video_id,
        run_id=run,
        submitted_at=f"2026-11-24T{9 + minute // 60:02}:{minute % 60:02}:00Z",
        outcome=outcome,
        person_ids=list(person_ids),
        frame_count=11,
        started_at=started_at,
        person_keys=person_keys,
    )


def two_videos(rng, count, *, parts=False, weights=("a" * 64,)) -> list[PersonEmbedding]:
    """Persons of the videos v and w with random vectors and vetoes, some vectors equal.

    With `parts` most of them have segments of their tracks.
    """
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


def candidate(key_a, key_b, similarity, **fields) -> DuplicateCandidate:
    """A proposed pair of two person keys, with more fields if given."""
    persons = []
    for key in sorted((key_a, key_b)):
        video_id, _, person_id = key.rpartition("/")
        persons.append(
            CandidatePerson(
                person_key=key,
                video_id=video_id,
                person_id=int(person_id),
                run_id="r1",
                first_frame_index=0,
                last_frame_index=10,
                first_seen_seconds=0,
                last_seen_seconds=1,
                crop_count=8,
            )
        )
    return DuplicateCandidate.make(
        occurred_at="2026-11-24T09:00:00Z",
        candidate_id=candidate_id_of("g", key_a, key_b),
        gallery_id="g",
        state="proposed",
        persons=persons,
        similarity=similarity,
        similarity_threshold=0.7,
        model=ModelInfo(name="test", weights_sha256="a" * 64),
        gallery_person_count=2,
        **fields,
    )


def duplicate_group(*keys, probability=0.95) -> DuplicateGroup:
    """A proposed group of person keys."""
    ordered = sorted(keys)
    return DuplicateGroup.make(
        occurred_at="2026-11-24T09:00:00Z",
        group_id=group_id_of("g", ordered[0]),
        gallery_id="g",
        state="proposed",
        person_keys=ordered,
        probability=probability,
        band="likely",
        calibration_id="0123456789abcdef",
    )


def track_suspect(video_id, person_id) -> TrackSuspect:
    """A track that seems to hold two people, the second from frame 104 on."""

    def part(number, first, last) -> SuspectPart:
        return SuspectPart(
            person_key=person_key_of(video_id, person_id, number),
            first_frame_index=first,
            last_frame_index=last,
            first_seen_seconds=first / 25,
            last_seen_seconds=last / 25,
            frames_tracked=last - first + 1,
            crop_count=20,
            best_crop=CropInfo(
                frame_index=first, pts_seconds=first / 25, box_xyxy=(0, 0, 10, 20), quality=1
            ),
        )

    return TrackSuspect.make(
        gallery_id="g",
        video_id=video_id,
        run_id="r1",
        submitted_at="2026-11-24T09:00:00Z",
        person_id=person_id,
        person_key=person_key_of(video_id, person_id),
        frame_index=104,
        seconds=4.16,
        probability=0.59,
        parts=(part(1, 64, 103), part(2, 104, 169)),
        model=ModelInfo(name="test", weights_sha256="a" * 64),
    )
