"""How alike the persons of one gallery look: cosines of their vectors, centred and whitened.

Nothing depends on the persons' order: whoever gives them sorts them first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.ids import hash_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from streamproc.events import PersonEmbedding
    from streamproc.gallery.calibration.curve import Curve

    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]
    BoolArray = npt.NDArray[np.bool_]

MEAN_PERSONS = 3.0
"""The training set's mean counts as much as so many persons of the gallery."""
VIDEO_PERSONS = 10.0
"""The gallery's mean counts as much as so many persons of a video."""
SCALE_DEGREES = 10.0
ONE_VIDEO = (200.0, 0.3)
"""The learned covariance counts as much as so many degrees of freedom (a track of 4 parts has 3), and the share of a
multiple of the identity."""
ACROSS_VIDEOS = (2000.0, 0.6)
"""The same for two videos: tracks say nothing of what changes from camera to camera, the learned covariance does."""
SAMPLED_PERSONS = 2000
"""Of a larger gallery so many persons are enough for means and covariances."""
_PAIRS_AT_ONCE = 4096  # 32 MiB of vectors


class Looks:
    """The vectors of some persons, seen together.

    `persons` in an order of their own, pairs are positions in it.
    """

    def __init__(self, curve: Curve, persons: Sequence[PersonEmbedding]) -> None:
        self._persons = persons
        names, self._video = np.unique([person.video_id for person in persons], return_inverse=True)
        sampled = _sampled(persons)
        vectors = np.stack([persons[i].vector.numpy() for i in sampled]).astype(np.float64)
        self._means = _means(vectors, self._video[sampled], len(names), curve.mean)
        residuals, self._degrees = within_tracks([persons[i] for i in sampled], len(curve.mean))
        self._scatter = residuals.T @ residuals  # (dim, dim)
        trace = np.trace(self._scatter) + SCALE_DEGREES * curve.part_trace
        self._learned = trace / (self._degrees + SCALE_DEGREES) * curve.covariance()

    def in_one_video(self, pairs: Int64Array) -> BoolArray:
        """Whether both of each pair (p, 2) are in one video, (p,)."""
        same: BoolArray = self._video[pairs[:, 0]] == self._video[pairs[:, 1]]
        return same

    def cosines(self, pairs: Int64Array) -> Float64Array:
        """How alike the two of each pair (p, 2) look, (p,) in [-1, 1]."""
        found, one_video = np.zeros(len(pairs)), self.in_one_video(pairs)
        for chosen, (learned_degrees, identity_share) in (
            (one_video, ONE_VIDEO),
            (~one_video, ACROSS_VIDEOS),
        ):
            if chosen.any():
                found[chosen] = self._whitened(
                    pairs[chosen], self._within(learned_degrees, identity_share)
                )
        return found

    def _within(self, learned_degrees: float, identity_share: float) -> Float64Array:
        """The covariance within persons (dim, dim): what the tracks say, held towards what is learned."""
        within = (self._scatter + learned_degrees * self._learned) / (
            self._degrees + learned_degrees
        )
        flat = np.trace(within) / len(within) * np.eye(len(within))
        shrunk: Float64Array = (1 - identity_share) * within + identity_share * flat
        return shrunk

    def _whitened(self, pairs: Int64Array, within: Float64Array) -> Float64Array:
        involved, local = np.unique(pairs, return_inverse=True)
        local = local.reshape(pairs.shape)
        vectors = np.stack([self._persons[i].vector.numpy() for i in involved]).astype(np.float64)
        vectors -= self._means[self._video[involved]]
        # Whitened vectors are nowhere: their products are those of the vectors with W^-1 times the
        # vectors.
        solved = np.linalg.solve(within, vectors.T).T
        lengths = np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors, solved)), 1e-12)
        chunks = np.array_split(local, len(local) // _PAIRS_AT_ONCE + 1)
        products = np.concatenate(
            [np.einsum("pd,pd->p", vectors[c[:, 0]], solved[c[:, 1]]) for c in chunks]
        )
        cosines: Float64Array = products / lengths[local].prod(1)
        return cosines


def _sampled(persons: Sequence[PersonEmbedding]) -> Sequence[int]:
    if len(persons) <= SAMPLED_PERSONS:
        return range(len(persons))
    # Which ones must not depend on who came first: those whose keys have the smallest hashes.
    return sorted(
        sorted(range(len(persons)), key=lambda i: hash_of(persons[i].person_key))[:SAMPLED_PERSONS]
    )


def _means(
    vectors: Float64Array, video: Int64Array, videos: int, learned: npt.NDArray[np.float32]
) -> Float64Array:
    """The mean (videos, dim) that each video's persons are held against."""
    everybody = vectors.mean(0)
    gallery = (len(vectors) * everybody + MEAN_PERSONS * learned) / (len(vectors) + MEAN_PERSONS)
    means = np.tile(gallery, (videos, 1))
    for i in np.unique(video):  # of a large gallery some have nobody in the sample
        own = vectors[video == i]
        means[i] += (own.mean(0) - everybody) * len(own) / (len(own) + VIDEO_PERSONS)
    return means


def within_tracks(persons: Iterable[PersonEmbedding], dim: int) -> tuple[Float64Array, int]:
    """How the parts of each track differ from their mean (r, dim), and the degrees of freedom in that."""
    parts = [person.segments.numpy() for person in persons if person.segments is not None]
    usable = [_unit(part) for part in parts if len(part) > 1 and part.shape[1] == dim]
    if not usable:
        return np.zeros((0, dim)), 0
    return np.concatenate([part - part.mean(0) for part in usable]), sum(
        len(part) - 1 for part in usable
    )


def _unit(rows: npt.ArrayLike) -> Float64Array:
    """Rows of length 1, whatever a producer sent: none may outweigh all others."""
    values = np.asarray(rows, np.float64)
    units: Float64Array = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return units
