"""How good candidates are, compared with the truth.

Precision and recall are those of the pairs. IDF1 (Ristani et al., ECCV Workshops 2016) is that of
the tracks, before and after the pairs are merged: tracks and true persons are assigned to each
other one to one so that the most boxes agree, with an IoU of at least a half in the same frame;
IDF1 is twice the number of those boxes over the number of all boxes of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import lap
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from streamproc.types import Float32Array, Track

    Int64Array = npt.NDArray[np.int64]

LEAST_IOU = 0.5
_OWN_SHARE = 0.5
"""A track is a person's where at least this share of its boxes lie on that person."""
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Scored:
    """The candidates whose probability or similarity is at least `least`, and IDF1 after merging.

    `precision` is None where there are no candidates, `recall` where there are no true pairs.
    """

    least: float
    candidates: int
    precision: float | None
    recall: float | None
    idf1: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The true pairs among the tracks, IDF1 of the tracks as they are, and a row a threshold."""

    true_pairs: int
    tracks_without_person: int
    idf1: float
    scored: tuple[Scored, ...]


def evaluate(
    tracks: Sequence[Track],
    truth: Sequence[Track],
    candidates: Sequence[tuple[int, int, float]],
    thresholds: Iterable[float],
) -> Evaluation:
    """Compare tracks and `candidates` with the `truth`, whose ids are persons.

    A candidate is two ids of tracks and its probability or similarity.
    """
    shared = shared_boxes(tracks, truth)
    owner = _owners(shared, tracks)
    person_of = {track.person_id: int(who) for track, who in zip(tracks, owner, strict=True)}
    row_of = {track.person_id: row for row, track in enumerate(tracks)}
    tracks_of_person = np.bincount(owner[owner != _NOBODY])
    true_pairs = int((tracks_of_person * (tracks_of_person - 1) // 2).sum())
    box_count = sum(len(track) for track in (*tracks, *truth))
    scored = []
    for least in thresholds:
        kept = [(a, b) for a, b, value in candidates if value >= least]
        right = sum(person_of[a] == person_of[b] != _NOBODY for a, b in kept)
        merged = merge(shared, [(row_of[a], row_of[b]) for a, b in kept])
        scored.append(
            Scored(
                least,
                len(kept),
                precision=right / len(kept) if kept else None,
                recall=right / true_pairs if true_pairs else None,
                idf1=_idf1(merged, box_count),
            )
        )
    without_person = int((owner == _NOBODY).sum())
    return Evaluation(true_pairs, without_person, _idf1(shared, box_count), tuple(scored))


def owners(tracks: Sequence[Track], truth: Sequence[Track]) -> list[int | None]:
    """Return the `person_id` of the truth for each track, None where it lies on no person."""
    found = _owners(shared_boxes(tracks, truth), tracks).tolist()
    return [None if who == _NOBODY else truth[who].person_id for who in found]


def _owners(shared: Int64Array, tracks: Sequence[Track]) -> Int64Array:
    """Return the person (column of `shared`) that each track (row) lies on."""
    if not shared.size:
        return np.full(len(tracks), _NOBODY)
    box_counts = np.array([len(track) for track in tracks])
    is_owned = shared.max(1) >= _OWN_SHARE * box_counts
    return np.where(is_owned, shared.argmax(1), _NOBODY)


def shared_boxes(tracks: Sequence[Track], truth: Sequence[Track]) -> Int64Array:
    """Return in how many frames each track lies on each person, (tracks, persons)."""
    shared = np.zeros((len(tracks), len(truth)), np.int64)
    for i, track in enumerate(tracks):
        for j, person in enumerate(truth):
            _, own, others = np.intersect1d(
                track.frame_indices, person.frame_indices, assume_unique=True, return_indices=True
            )
            if own.size:
                ious = _iou(track.boxes_xyxy[own], person.boxes_xyxy[others])
                shared[i, j] = np.count_nonzero(ious >= LEAST_IOU)
    return shared


def _iou(a: Float32Array, b: Float32Array) -> Float32Array:
    """Return intersection over union (k,) of boxes (k, 4), one by one."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(0).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    ratio: Float32Array = common / (areas - common)
    return ratio


def merge(shared: Int64Array, pairs: Iterable[tuple[int, int]]) -> Int64Array:
    """Add up the rows that pairs connect, directly or by way of others."""
    group = list(range(len(shared)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for a, b in pairs:
        group[root(a)] = root(b)
    merged = np.zeros_like(shared)
    np.add.at(merged, [root(i) for i in range(len(shared))], shared)
    return merged


def _idf1(shared: Int64Array, box_count: int) -> float:
    rows = shared if shared.shape[0] <= shared.shape[1] else shared.T
    agreed = sum(int(rows[i, j]) for i, j in assign(-rows).items())
    return 2 * agreed / box_count if box_count else 0.0


def assign(costs: Int64Array) -> Mapping[int, int]:
    """Give each row (n) a column (m >= n) of its own, with the least sum of costs.

    This is Jonker and Volgenant's method (Computing 1987), as the library lap has it.
    """
    if not costs.size:
        return {}
    _, column_of, _ = lap.lapjv(costs.astype(np.float64), extend_cost=True)
    return dict(enumerate(column_of.tolist()))
