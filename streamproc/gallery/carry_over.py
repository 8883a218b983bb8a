"""Decisions on an earlier run of a video, carried over to a run with other tracks.

A track is the same person as an earlier one where their boxes say so: of the frames that both have,
at least half overlap by half. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.decisions import (
    ApartDecision,
    GroupDecision,
    PairDecision,
    UndoDecision,
    VerifiedDecision,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from streamproc.decisions import AnyDecision
    from streamproc.events import PersonEmbedding
    from streamproc.types import Float32Array

LEAST_IOU = 0.5
LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a person was, without what it looked like: `boxes` (n, 4) by `frame_indices`."""

    person_key: str
    video_id: str
    run_id: str
    frame_indices: tuple[int, ...]
    boxes: Float32Array

    def __repr__(self) -> str:
        return f"Place({self.person_key!r}, {len(self.frame_indices)} boxes)"


def place_of(person: PersonEmbedding) -> Place:
    """Return where a person was, as far as its event says."""
    boxes = _boxes(person)
    return Place(
        person.person_key,
        person.video_id,
        person.run_id,
        tuple(boxes),
        np.array(list(boxes.values()), np.float32).reshape(-1, 4),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """Decisions under the keys of the new run, and those that name somebody who is not in it."""

    decisions: tuple[AnyDecision, ...]
    lost: tuple[AnyDecision, ...]


def carry_over(
    decisions: Iterable[AnyDecision],
    earlier: Iterable[PersonEmbedding | Place],
    later: Iterable[PersonEmbedding],
    changed_videos: Collection[str],
    *,
    unchanged_keys: Collection[str] = (),
) -> Carried:
    """Rewrite decisions on `earlier` tracks for the `later` ones.

    `changed_videos` have other tracks than before, so that a key may name somebody else now; the
    keys of other videos, and `unchanged_keys`, stay.
    """
    new_keys = _NewKeys(earlier, later, changed_videos, unchanged_keys)
    carried: list[AnyDecision] = []
    lost: list[AnyDecision] = []
    for decision in decisions:
        rewritten = _rewritten(decision, new_keys)
        if rewritten is None:
            lost.append(decision)
        else:
            carried.append(rewritten)
    return Carried(tuple(carried), tuple(lost))


def _rewritten(decision: AnyDecision, new_keys: _NewKeys) -> AnyDecision | None:
    """Return a decision under new keys, None where too little of it is left."""
    if isinstance(decision, UndoDecision):
        return decision
    keys = new_keys.of(decision.person_keys)
    changes: dict[str, Any] = {"person_keys": keys}
    all_there = len(keys) == len(set(decision.person_keys))
    if isinstance(decision, PairDecision):
        changes["person_keys"] = tuple(keys)
        is_whole = all_there
    elif isinstance(decision, GroupDecision):
        is_whole = len(keys) > 1
    elif isinstance(decision, ApartDecision):
        others = [key for key in new_keys.of(decision.other_keys) if key not in keys]
        changes["other_keys"] = others
        is_whole = bool(keys and others)
    else:
        is_whole = all_there if isinstance(decision, VerifiedDecision) else bool(keys)
    return decision.model_copy(update=changes) if is_whole else None


class _NewKeys:
    """The keys of earlier persons in the new run."""

    def __init__(
        self,
        earlier: Iterable[PersonEmbedding | Place],
        later: Iterable[PersonEmbedding],
        changed_videos: Collection[str],
        unchanged_keys: Collection[str],
    ) -> None:
        self._changed_videos = changed_videos
        self._unchanged_keys = unchanged_keys
        of_video: dict[str, list[PersonEmbedding]] = defaultdict(list)
        for person in later:
            of_video[person.video_id].append(person)
        places = {video_id: _Places(persons) for video_id, persons in of_video.items()}
        self._new_keys = {
            person.person_key: places[person.video_id].same_person(person)
            for person in earlier
            if person.video_id in changed_videos and person.video_id in places
        }

    def of(self, keys: Iterable[str]) -> list[str]:
        """Return the new keys of those who are still there, each once."""
        renamed = (self._new_key(key) for key in keys)
        return list(dict.fromkeys(key for key in renamed if key is not None))

    def _new_key(self, key: str) -> str | None:
        if key in self._unchanged_keys:
            return key
        is_changed = key.rpartition("/")[0] in self._changed_videos
        return self._new_keys.get(key) if is_changed else key


class _Places:
    """Where the persons of one video were, by frame: who is compared shares a frame."""

    def __init__(self, persons: Sequence[PersonEmbedding]) -> None:
        self._keys = [person.person_key for person in persons]
        rows: dict[int, list[tuple[int, Float32Array]]] = defaultdict(list)
        for number, person in enumerate(persons):
            for frame, box in _boxes(person).items():
                rows[frame].append((number, box))
        self._of_frame = {
            frame: (np.array([number for number, _ in row]), np.stack([box for _, box in row]))
            for frame, row in rows.items()
        }

    def same_person(self, person: PersonEmbedding | Place) -> str | None:
        """Return who a person of another run is: the one with the most frames in the same place.

        That has to be at least half of the frames that both have.
        """
        met = [
            (box, *self._of_frame[frame])
            for frame, box in _boxes(person).items()
            if frame in self._of_frame
        ]
        if not met:
            return None
        numbers = np.concatenate([numbers for _, numbers, _ in met])
        ours = np.concatenate([np.tile(box, (len(boxes), 1)) for box, _, boxes in met])
        theirs = np.concatenate([boxes for _, _, boxes in met])
        shared = np.bincount(numbers)
        together = np.bincount(numbers, _ious(ours, theirs) >= LEAST_IOU)
        together[together < LEAST_SHARE * shared] = 0
        best = int(together.argmax())
        return self._keys[best] if together[best] else None


def _ious(ones: Float32Array, others: Float32Array) -> Float32Array:
    """Return the IoU of boxes (n, 4) with boxes (n, 4), row by row."""
    low = np.maximum(ones[:, :2], others[:, :2])
    high = np.minimum(ones[:, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (ones[:, 2:] - ones[:, :2]).prod(1) + (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(shared / np.maximum(areas - shared, 1e-9), np.float32)


def _boxes(person: PersonEmbedding | Place) -> dict[int, Float32Array]:
    """Return what is known of a person's boxes, by frame index."""
    if isinstance(person, Place):
        return dict(zip(person.frame_indices, person.boxes, strict=True))
    if person.trajectory is None:  # written by an older version
        return {crop.frame_index: np.array(crop.box_xyxy, np.float32) for crop in person.crops}
    boxes = person.trajectory.numpy()
    return dict(zip(person.trajectory.frame_indices, boxes, strict=True))
