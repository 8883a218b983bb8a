"""How good candidates and groups are, compared with the truth.

Precision and recall are those of the pairs. IDF1 (Ristani et al., ECCV Workshops 2016) is that of
the tracks, before and after the pairs are merged: tracks and true persons are assigned to each
other one to one so that the most boxes agree, with an IoU of at least a half in the same frame;
IDF1 is twice the number of those boxes over the number of all boxes of both. HOTA: see `hota`. Of
both also the share of the gain is computed that merging by the truth would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamproc.offline.assignment import assign
from streamproc.offline.hota import Overlapping

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streamproc.types import Float32Array, Int64Array, Track

__all__ = ["Evaluation", "Merged", "Scored", "assign", "evaluate", "merge", "owners"]

LEAST_IOU = 0.5
_OWN_SHARE = 0.5
"""A track is a person's where at least this share of its boxes lie on that person."""
_NOBODY = -1
_LEAST_GAIN = 1e-9


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
class Merged:
    """The tracks merged in one way, and the share of the gain that the truth would give.

    A share is None where the truth gives no gain.
    """

    by: str
    idf1: float
    hota: float
    idf1_share: float | None
    hota_share: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The true pairs among the tracks, IDF1 of the tracks as they are, and a row a threshold.

    `merged` are the tracks as they are, merged in each way that was asked for, and by the truth.
    """

    true_pairs: int
    tracks_without_person: int
    idf1: float
    scored: tuple[Scored, ...]
    merged: tuple[Merged, ...] = ()


def evaluate(
    tracks: Sequence[Track],
    truth: Sequence[Track],
    candidates: Sequence[tuple[int, int, float]],
    thresholds: Iterable[float],
    ways: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Evaluation:
    """Compare tracks and `candidates` with the `truth`, whose ids are persons.

    A candidate is two ids of tracks and its probability or similarity. `ways` are names of ways to
    merge, each with the pairs of ids that it merges.
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
    rows_of = {
        name: [(row_of[a], row_of[b]) for a, b in pairs] for name, pairs in (ways or {}).items()
    }
    merged_ways = _merged_ways(tracks, truth, shared, rows_of) if rows_of else ()
    idf1 = _idf1(shared, box_count)
    return Evaluation(true_pairs, without_person, idf1, tuple(scored), merged_ways)


def _merged_ways(
    tracks: Sequence[Track],
    truth: Sequence[Track],
    shared: Int64Array,
    ways: Mapping[str, Sequence[tuple[int, int]]],
) -> tuple[Merged, ...]:
    """Measure the tracks as they are, merged in each way (pairs of rows), and by the truth."""
    box_count = sum(len(track) for track in (*tracks, *truth))
    overlapping = Overlapping(tracks, truth)
    measured: dict[str, tuple[float, float]] = {}
    for name, pairs in {"tracks": [], **ways, "truth": _true_pairs(shared)}.items():
        groups = _connected(len(tracks), pairs)
        names = np.unique(groups, return_inverse=True)[1]
        idf1 = _idf1(merge(shared, pairs), box_count)
        measured[name] = (idf1, overlapping.hota(names.tolist()))
    start = measured["tracks"]
    best = measured["truth"]

    def share(value: float, which: int) -> float | None:
        gain = best[which] - start[which]
        return (value - start[which]) / gain if gain > _LEAST_GAIN else None

    return tuple(
        Merged(name, idf1, hota, share(idf1, 0), share(hota, 1))
        for name, (idf1, hota) in measured.items()
    )


def _true_pairs(shared: Int64Array) -> list[tuple[int, int]]:
    """Return pairs of rows that merge each track into whom most of its boxes lie on."""
    first: dict[int, int] = {}
    pairs = []
    for row, boxes in enumerate(shared):
        if boxes.any():
            pairs.append((first.setdefault(int(boxes.argmax()), row), row))
    return pairs


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
    merged = np.zeros_like(shared)
    np.add.at(merged, _connected(len(shared), pairs), shared)
    return merged


def _connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each of `count` rows one that stands for all that pairs connect it with."""
    group = list(range(count))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for a, b in pairs:
        group[root(a)] = root(b)
    return [root(i) for i in range(count)]


def _idf1(shared: Int64Array, box_count: int) -> float:
    rows = shared if shared.shape[0] <= shared.shape[1] else shared.T
    agreed = sum(int(rows[i, j]) for i, j in assign(-rows).items())
    return 2 * agreed / box_count if box_count else 0.0
