"""GTA-Link's linking (Sun et al. 2024), written from the paper, to compare with.

The two tracklets with the smallest mean pairwise cosine distance between their crops' vectors are
joined while it is below 0.4, if they share no frame and, where one goes on after the other, the
centres of its last and the other's first box are within the range of all centres, along x and y.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]

Piece = tuple[int, int, int]
"""First and last frame index of a tracklet, and its number."""
DISTANCE = 0.4


def link(
    crop_vectors: Sequence[FloatArray],
    frames: Sequence[IntArray],
    first_boxes: FloatArray,
    last_boxes: FloatArray,
) -> IntArray:
    """Label (n,) tracklets of unit vectors (k, dim), frame indices, first and last boxes (n, 4)."""
    sums = np.stack([own.sum(0) for own in crop_vectors])
    sizes = np.array([float(len(own)) for own in crop_vectors])
    present = [set(own.tolist()) for own in frames]
    pieces = [[(own[0], own[-1], i)] for i, own in enumerate(frames)]
    enters = _centres(first_boxes)
    leaves = _centres(last_boxes)
    gate = np.ptp(np.concatenate([enters, leaves]), axis=0)
    label = np.arange(len(crop_vectors))
    distance = np.full((len(label), len(label)), np.inf)
    for i in label:
        _measure(distance, i, label, sums, sizes, present)
    while True:
        one, other = sorted(divmod(int(distance.argmin()), len(label)))
        if not distance[one, other] < DISTANCE:
            return label
        distance[one, other] = distance[other, one] = np.inf
        if not _within_reach(pieces[one], pieces[other], enters, leaves, gate):
            continue
        pieces[one] = sorted(pieces[one] + pieces[other])
        present[one] |= present[other]
        sums[one] += sums[other]
        sizes[one] += sizes[other]
        label[label == other] = one
        distance[other] = distance[:, other] = np.inf
        _measure(distance, one, np.unique(label), sums, sizes, present)


def _measure(
    distance: FloatArray,
    i: int,
    others: Iterable[int],
    sums: FloatArray,
    sizes: FloatArray,
    present: Sequence[set[int]],
) -> None:
    """Set the mean pairwise distance of a cluster to others, inf where they share a frame."""
    for j in others:
        if j != i:
            apart = 1 - float(sums[i] @ sums[j]) / (sizes[i] * sizes[j])
            distance[i, j] = distance[j, i] = np.inf if present[i] & present[j] else apart


def _within_reach(
    one: Sequence[Piece],
    other: Sequence[Piece],
    enters: FloatArray,
    leaves: FloatArray,
    gate: FloatArray,
) -> bool:
    """Whether each change from a piece of the one to a piece of the other is within the gate."""
    own = {piece[2] for piece in one}
    for before, after in pairwise(sorted([*one, *other])):
        changes = (before[2] in own) != (after[2] in own)
        if changes and (np.abs(leaves[before[2]] - enters[after[2]]) > gate).any():
            return False
    return True


def _centres(boxes: FloatArray) -> FloatArray:
    return (boxes[:, :2] + boxes[:, 2:]).astype(np.float64) / 2
