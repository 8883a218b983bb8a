"""How good lists of candidates are, by the truth of the tracks.

A track is a person's where it has 10 boxes or more and at least 80 % of them lie on that person.
Pairs with other tracks are not counted, but count in IDF1 (Ristani et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.reliability import calibration_error
from streamproc.offline.evaluation import assign, merge, shared_boxes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from models.linking.rows import Listed, TrackedFile
    from streamproc.types import Track

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

LEAST_BOXES = 10
LEAST_SHARE = 0.8
NOBODY = -1
ENOUGH_TRUE_PAIRS = 10
"""Of a file whose recall says something."""
SECOND_SHARE, RIGHT_SIDE = 0.25, 0.9
"""A track holds two people where the second has that share of its boxes, and one change has that
share of the boxes of both on its right side."""
UNCLEAR = {
    "Venice-2": [{14, 78}, {27, 28}, {27, 29}, {28, 29}, {19, 23}, {3, 19}, {3, 23}],
}
"""Persons of the truth whose pictures seem to show one person, or who cannot be told apart."""


class Truth:
    """The truth of one track file: who each track is, and IDF1 of what is merged."""

    def __init__(self, file: TrackedFile) -> None:
        self._file = file
        self._shared = shared_boxes(file.tracks, file.truth)
        self._row = {track.person_id: row for row, track in enumerate(file.tracks)}
        self._boxes = sum(len(track) for track in (*file.tracks, *file.truth))

    @cached_property
    def person(self) -> IntArray:
        """The person (n,) of each tracklet, as its id in the truth, -1 where not known."""
        rows = [self._row[int(i)] for i in self._file.ids]
        counts = np.array([len(self._file.tracks[row]) for row in rows])
        shared = self._shared[rows]
        ids = np.array([person.person_id for person in self._file.truth])
        known = (counts >= LEAST_BOXES) & (shared.max(1) >= LEAST_SHARE * counts)
        return np.where(known, ids[shared.argmax(1)], NOBODY)

    @cached_property
    def true_pairs(self) -> int:
        """How many pairs of tracklets are one person."""
        _, tracks = np.unique(self.person[self.person != NOBODY], return_counts=True)
        return int((tracks * (tracks - 1) // 2).sum())

    def idf1(self, pairs: Iterable[Sequence[int]]) -> float:
        """IDF1 of the tracks when pairs of ids are merged, directly or by way of others."""
        merged = merge(self._shared, [(self._row[a], self._row[b]) for a, b in pairs])
        rows = merged[merged.any(1)]
        rows = rows if len(rows) <= rows.shape[1] else rows.T
        agreed = sum(int(rows[i, j]) for i, j in assign(-rows).items())
        return 2 * agreed / self._boxes

    @cached_property
    def start_idf1(self) -> float:
        """IDF1 of the tracks as they are."""
        return self.idf1([])

    @cached_property
    def best_idf1(self) -> float:
        """The most that merging can give: each track is whom most of its boxes lie on."""
        best = np.where(self._shared.any(1), self._shared.argmax(1), NOBODY)
        first: dict[int, int] = {}
        pairs = []
        for track, person in zip(self._file.tracks, best.tolist(), strict=True):
            if person != NOBODY:
                pairs.append((first.setdefault(person, track.person_id), track.person_id))
        return self.idf1(pairs)


def is_unclear(video: str, a: IntArray, b: IntArray) -> BoolArray:
    """Whether pairs of persons (p,) of a video are among `UNCLEAR`."""
    unclear = UNCLEAR.get(video, [])
    return np.array([{x, y} in unclear for x, y in zip(a.tolist(), b.tolist(), strict=True)], bool)


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """The candidates of one file beside the truth.

    `probability`, `right`, `likely` and `unclear` are (c,), of pairs whose truth is known. `idf1`:
    of the tracks as they are, merged by the likely ones, by all, and by the truth.
    """

    name: str
    true_pairs: int
    probability: FloatArray
    right: BoolArray
    likely: BoolArray
    unclear: BoolArray
    idf1: tuple[float, float, float, float]

    def share(self, which: int) -> float:
        """Return the share of the truth's gain in IDF1 of likely (1) or all (2)."""
        return (self.idf1[which] - self.idf1[0]) / max(self.idf1[3] - self.idf1[0], 1e-9)

    def __str__(self) -> str:
        def figures(chosen: BoolArray) -> str:
            found = int(self.right[chosen].sum())
            return f"P {found / max(chosen.sum(), 1):.2f} R {found / max(self.true_pairs, 1):.2f}"

        everything = np.ones(len(self.right), bool)
        return (
            f"{self.name}: {self.true_pairs} true; all {figures(everything)}; "
            f"likely {figures(self.likely)}; IDF1 "
            + ", ".join(f"{value:.3f}" for value in self.idf1)
            + f"; share likely {self.share(1):.2f} all {self.share(2):.2f}"
        )


def score(file: TrackedFile, truth: Truth, listed: Listed, whole: Truth) -> Score:
    """Score a list; `whole`: the truth of the tracks before any was split."""
    person = dict(zip(file.ids.tolist(), truth.person.tolist(), strict=True))
    a, b = np.array([[person[i] for i in pair] for pair in listed.pairs.tolist()]).reshape(-1, 2).T
    known = (a != NOBODY) & (b != NOBODY)
    by_likely = truth.idf1(listed.pairs[listed.likely].tolist())
    by_all = truth.idf1(listed.pairs.tolist())
    return Score(
        f"{file.video}/{file.tracker}",
        truth.true_pairs,
        listed.probability[known],
        (a == b)[known],
        listed.likely[known],
        is_unclear(file.video, a, b)[known],
        (whole.start_idf1, by_likely, by_all, whole.best_idf1),
    )


def together(scores: Sequence[Score]) -> str:
    """Return the figures of all files together."""
    right = np.concatenate([each.right for each in scores])
    probability = np.concatenate([each.probability for each in scores])
    error = calibration_error(probability, right) if len(right) else 0.0
    recalls = [
        each.right.sum() / each.true_pairs
        for each in scores
        if each.true_pairs >= ENOUGH_TRUE_PAIRS
    ]
    share = [np.median([each.share(which) for each in scores]) for which in (1, 2)]
    merged = np.median([each.idf1[2] for each in scores])
    return (
        f"{_of_pairs(scores)}; ECE {error:.3f} of {len(right)} pairs; recall median "
        f"{np.median(recalls):.2f} least {min(recalls):.2f}; share of the gain in IDF1, medians: "
        f"likely {share[0]:.2f} all {share[1]:.2f}; median IDF1 merged by all {merged:.3f}"
    )


def _of_pairs(scores: Sequence[Score]) -> str:
    """Return recall and precision of the lists, and of their likely pairs."""
    right, likely, unclear = (
        np.concatenate([getattr(each, name) for each in scores])
        for name in ("right", "likely", "unclear")
    )
    true = sum(each.true_pairs for each in scores)
    lines = []
    for name, chosen in (("all", np.ones(len(right), bool)), ("likely", likely)):
        found = right[chosen].sum()
        clear = (chosen & (right | ~unclear)).sum()
        lines.append(
            f"{name}: recall {found / true:.3f} precision {found / max(chosen.sum(), 1):.3f} "
            f"(without unclear pairs {found / max(clear, 1):.3f})"
        )
    return "; ".join(lines)


def switches(tracks: Iterable[Track], truth: Sequence[Track]) -> Mapping[int, int]:
    """Return the tracks that truly hold two people: the second one's first frame, by id."""
    found = {}
    for track in tracks:
        who = _owners(track, truth)
        names, counts = np.unique(who[who != NOBODY], return_counts=True)
        order = np.argsort(-counts)[:2]
        second = counts[order[1:]].sum()  # 0 where there is none
        if len(track) < LEAST_BOXES or second < max(SECOND_SHARE * len(track), 1):
            continue
        rows = np.flatnonzero(np.isin(who, names[order]))
        cut, share = _change(who[rows] == names[order[0]])
        if share >= RIGHT_SIDE:
            found[track.person_id] = int(track.frame_indices[rows[cut]])
    return found


def _change(is_first: BoolArray) -> tuple[int, float]:
    """Where a row of boxes (n,) of two people changes best, and the share on its right side."""
    before = np.concatenate([[0], np.cumsum(is_first)])
    place = np.arange(len(before))
    first_then_second = before + (len(is_first) - place) - (before[-1] - before)
    right = np.maximum(first_then_second, len(is_first) - first_then_second)
    cut = int(right[1:-1].argmax()) + 1
    return cut, right[cut] / len(is_first)


def _owners(track: Track, truth: Sequence[Track]) -> IntArray:
    """Return the person that each box of a track overlaps most, -1 where IoU is below a half."""
    best = np.full(len(track), 0.5)
    owner = np.full(len(track), NOBODY)
    for person in truth:
        _, own, others = np.intersect1d(
            track.frame_indices, person.frame_indices, return_indices=True
        )
        a = track.boxes_xyxy[own]
        b = person.boxes_xyxy[others]
        sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        common = sides.clip(0).prod(1)
        areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
        iou = common / (areas - common)
        better = iou >= best[own]
        best[own[better]] = iou[better]
        owner[own[better]] = person.person_id
    return owner
