"""How similar tracklets look: the cosine of their vectors after centring and whitening.

Centring subtracts what all vectors of a camera have in common. Whitening gives directions in which
the vectors of one person vary much a low weight.

Nothing depends on the order of the tracklets, given that the caller sorts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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


class Shrinkage(NamedTuple):
    """How far the covariance that the gallery's tracks show is shrunk towards others.

    The learned covariance counts as much as `learned_degrees` of freedom; a track of 4 parts has 3.
    Of the sum, `identity_share` is replaced by a multiple of the identity.
    """

    learned_degrees: float
    identity_share: float


MEAN_TRACKLETS = 3.0
"""The mean of the training set counts as much as so many tracklets of the gallery."""
VIDEO_TRACKLETS = 10.0
"""The mean of the gallery counts as much as so many tracklets of a video."""
SCALE_DEGREES = 10.0
"""The learned size of the covariance counts as much as so many degrees of freedom."""
ONE_VIDEO = Shrinkage(200.0, 0.3)
"""For pairs in one video."""
ACROSS_VIDEOS = Shrinkage(2000.0, 0.6)
"""For pairs of two videos: what changes from camera to camera shows in no track, so the learned
covariance counts more."""
SAMPLED_TRACKLETS = 2000
"""Means and covariances of a larger gallery are those of so many of its tracklets."""
_PAIRS_AT_ONCE = 4096  # 32 MiB of vectors


class WhitenedSimilarity:
    """The whitened cosines of the tracklets of one gallery.

    `tracklets` are in the caller's order; a pair is two positions in it.
    """

    def __init__(self, curve: Curve, tracklets: Sequence[PersonEmbedding]) -> None:
        self._tracklets = tracklets
        video_ids = [tracklet.video_id for tracklet in tracklets]
        names, self._video = np.unique(video_ids, return_inverse=True)
        sampled = _sampled(tracklets)
        vectors = np.stack([tracklets[i].vector.numpy() for i in sampled]).astype(np.float64)
        self._means = _means(vectors, self._video[sampled], len(names), curve.mean)
        residuals, self._degrees = within_tracks([tracklets[i] for i in sampled], len(curve.mean))
        self._scatter = residuals.T @ residuals  # (dim, dim)
        trace = np.trace(self._scatter) + SCALE_DEGREES * curve.within_track_trace
        self._learned = trace / (self._degrees + SCALE_DEGREES) * curve.covariance()

    def in_one_video(self, pairs: Int64Array) -> BoolArray:
        """Return whether both of each pair (p, 2) are in one video, (p,)."""
        same: BoolArray = self._video[pairs[:, 0]] == self._video[pairs[:, 1]]
        return same

    def cosines(self, pairs: Int64Array) -> Float64Array:
        """Return the whitened cosines (p,) in [-1, 1] of pairs (p, 2)."""
        found = np.zeros(len(pairs))
        in_one_video = self.in_one_video(pairs)
        for chosen, shrinkage in ((in_one_video, ONE_VIDEO), (~in_one_video, ACROSS_VIDEOS)):
            if chosen.any():
                found[chosen] = self._whitened(pairs[chosen], self._within(*shrinkage))
        return found

    def _within(self, learned_degrees: float, identity_share: float) -> Float64Array:
        """Return the covariance within persons (dim, dim), after shrinkage."""
        within = self._scatter + learned_degrees * self._learned
        within = within / (self._degrees + learned_degrees)
        flat = np.trace(within) / len(within) * np.eye(len(within))
        shrunk: Float64Array = (1 - identity_share) * within + identity_share * flat
        return shrunk

    def _whitened(self, pairs: Int64Array, within: Float64Array) -> Float64Array:
        """Return the cosines (p,) under the metric that is the inverse of `within`."""
        involved, local = np.unique(pairs, return_inverse=True)
        local = local.reshape(pairs.shape)
        vectors = np.stack([self._tracklets[i].vector.numpy() for i in involved])
        vectors = vectors.astype(np.float64)
        vectors -= self._means[self._video[involved]]
        # The whitened vectors themselves are not needed: their products are those of the vectors
        # with the inverse of the covariance times the vectors.
        solved = np.linalg.solve(within, vectors.T).T
        lengths = np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors, solved)), 1e-12)
        chunks = np.array_split(local, len(local) // _PAIRS_AT_ONCE + 1)
        products = [
            np.einsum("pd,pd->p", vectors[chunk[:, 0]], solved[chunk[:, 1]]) for chunk in chunks
        ]
        cosines: Float64Array = np.concatenate(products) / lengths[local].prod(1)
        return cosines


def _sampled(tracklets: Sequence[PersonEmbedding]) -> Sequence[int]:
    """Return the positions of the tracklets that means and covariances are made of, ascending."""
    if len(tracklets) <= SAMPLED_TRACKLETS:
        return range(len(tracklets))
    # The choice must not depend on the order of arrival, so the smallest hashes are taken.
    by_hash = sorted(range(len(tracklets)), key=lambda i: hash_of(tracklets[i].person_key))
    return sorted(by_hash[:SAMPLED_TRACKLETS])


def _means(
    vectors: Float64Array, video: Int64Array, video_count: int, learned: npt.NDArray[np.float32]
) -> Float64Array:
    """Return the mean (videos, dim) that is subtracted from the vectors of each video.

    `vectors` (n, dim) are of the sampled tracklets, `video` (n,) says whose they are.
    """
    sample_mean = vectors.mean(0)
    gallery = len(vectors) * sample_mean + MEAN_TRACKLETS * learned
    gallery = gallery / (len(vectors) + MEAN_TRACKLETS)
    means = np.tile(gallery, (video_count, 1))
    for i in np.unique(video):  # some videos of a large gallery have nobody in the sample
        own = vectors[video == i]
        means[i] += (own.mean(0) - sample_mean) * len(own) / (len(own) + VIDEO_TRACKLETS)
    return means


def within_tracks(tracklets: Iterable[PersonEmbedding], dim: int) -> tuple[Float64Array, int]:
    """Return how the parts of each track differ from their mean, and the degrees of freedom.

    The differences are (r, dim), with r the number of parts of all tracks that have several.
    """
    parts = [tracklet.segments.numpy() for tracklet in tracklets if tracklet.segments is not None]
    usable = [_unit(part) for part in parts if len(part) > 1 and part.shape[1] == dim]
    if not usable:
        return np.zeros((0, dim)), 0
    differences = np.concatenate([part - part.mean(0) for part in usable])
    return differences, sum(len(part) - 1 for part in usable)


def _unit(rows: npt.ArrayLike) -> Float64Array:
    """Return the rows with length 1, so that none a producer sent outweighs all others."""
    values = np.asarray(rows, np.float64)
    units: Float64Array = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return units
