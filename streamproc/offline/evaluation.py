"""How good candidates are, against truth: precision and recall of the pairs, IDF1 before and after merging them.

IDF1 as Ristani et al. define it (ECCV Workshops 2016): tracks and true persons are assigned to each
other one to one so that most boxes agree (IoU of at least a half in the same frame); IDF1 is twice
those boxes over all boxes of both. It is what merging duplicates should raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from streamproc.types import Float32Array, Track

LEAST_IOU = 0.5
_OWN_SHARE = 0.5
"""A track is a person's where at least this share of its boxes lie on that person."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates at least this likely (or similar): how many, how many of them right, and what merging them gives."""

    least: float
    candidates: int
    precision: float | None
    recall: float | None
    idf1: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an output is worth: true pairs among the tracks, IDF1 of the tracks as they are, and a line a threshold."""

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
    """Compare tracks and `candidates` (id, id, how sure) with the `truth`, whose ids are persons."""
    shared = shared_boxes(tracks, truth)  # (tracks, persons)
    sizes = np.array([len(track) for track in tracks])
    owner = _owners(shared, sizes)
    person_of = {track.person_id: int(who) for track, who in zip(tracks, owner, strict=True)}
    counts = np.bincount(owner[owner >= 0])
    true_pairs = int((counts * (counts - 1) // 2).sum())
    total = int(sizes.sum()) + sum(len(track) for track in truth)
    row_of = {track.person_id: i for i, track in enumerate(tracks)}
    scored = []
    for least in thresholds:
        kept = [(a, b) for a, b, sure in candidates if sure >= least]
        right = sum(person_of[a] == person_of[b] >= 0 for a, b in kept)
        merged = merge(shared, [(row_of[a], row_of[b]) for a, b in kept])
        scored.append(
            Scored(
                least,
                len(kept),
                right / len(kept) if kept else None,
                right / true_pairs if true_pairs else None,
                _idf1(merged, total),
            )
        )
    return Evaluation(true_pairs, int((owner < 0).sum()), _idf1(shared, total), tuple(scored))


def owners(tracks: Sequence[Track], truth: Sequence[Track]) -> list[int | None]:
    """Whose each track is: the `person_id` of the truth that half of its boxes lie on, None where there is none."""
    found = _owners(shared_boxes(tracks, truth), np.array([len(track) for track in tracks]))
    return [truth[who].person_id if who >= 0 else None for who in found.tolist()]


def _owners(shared: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which person (column) each track (row) is, -1 for none."""
    return np.where(
        shared.max(1, initial=0) >= _OWN_SHARE * sizes, shared.argmax(1) if shared.size else -1, -1
    )


def shared_boxes(tracks: Sequence[Track], truth: Sequence[Track]) -> npt.NDArray[np.int64]:
    """In how many frames each track lies on each person, (tracks, persons)."""
    shared = np.zeros((len(tracks), len(truth)), np.int64)
    for i, track in enumerate(tracks):
        for j, person in enumerate(truth):
            _, own, others = np.intersect1d(
                track.frame_indices, person.frame_indices, assume_unique=True, return_indices=True
            )
            if own.size:
                shared[i, j] = np.count_nonzero(
                    _iou(track.boxes_xyxy[own], person.boxes_xyxy[others]) >= LEAST_IOU
                )
    return shared


def _iou(a: Float32Array, b: Float32Array) -> Float32Array:
    """Intersection over union (k,) of boxes (k, 4), one by one."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(0).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    ratio: Float32Array = common / (areas - common)
    return ratio


def merge(shared: npt.NDArray[np.int64], pairs: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Add up the rows that pairs connect, also by way of others."""
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


def _idf1(shared: npt.NDArray[np.int64], total_boxes: int) -> float:
    rows = shared if shared.shape[0] <= shared.shape[1] else shared.T
    agreed = sum(int(rows[i, j]) for i, j in assign(-rows).items())
    return 2 * agreed / total_boxes if total_boxes else 0.0


def assign(costs: npt.NDArray[np.int64]) -> Mapping[int, int]:
    """Give each row (n) a column (m >= n) of its own so that the costs come to the least.

    The Hungarian method with potentials, O(n² m) (Jonker and Volgenant 1987).
    """
    n, m = costs.shape
    row_price, column_price = np.zeros(n + 1), np.zeros(m + 1)
    row_of = np.zeros(m + 1, int)  # of each column, 1-based; 0 is none
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, came_from, used = np.full(m + 1, np.inf), np.zeros(m + 1, int), np.zeros(m + 1, bool)
        while row_of[column]:
            used[column] = True
            here = row_of[column]
            reduced = costs[here - 1] - row_price[here] - column_price[1:]
            better = ~used[1:] & (reduced < least[1:])
            least[1:][better], came_from[1:][better] = reduced[better], column
            nearest = int(np.where(used[1:], np.inf, least[1:]).argmin()) + 1
            step = least[nearest]
            row_price[row_of[used]] += step
            column_price[used] -= step
            least[~used] -= step
            column = nearest
        while column:
            previous = came_from[column]
            row_of[column], column = row_of[previous], previous
    return {int(row_of[j]) - 1: j - 1 for j in range(1, m + 1) if row_of[j]}
