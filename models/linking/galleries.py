"""Galleries whose truth is known, as the pairs that are fitted on and judged."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from models.calibrate import FOLDS, SHORTENED, THRESHOLD, learned
from models.known_people import KINDS, draw, draw_by
from models.linking.fit_linking import POSITION, KnownPairs
from models.linking.scores import NOBODY, is_unclear
from streamproc.gallery.linking.pair_features import LooksModel, close_video
from streamproc.gallery.linking.pair_model import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from models.known_people import Chosen, Track, Tracks
    from models.linking.rows import TrackedFile
    from models.linking.scores import Truth
    from streamproc.events import PersonEmbedding
    from streamproc.gallery.calibration.fitting import KnownGallery
    from streamproc.gallery.linking.pair_features import Video

    IntArray = npt.NDArray[np.int64]

GALLERIES = 120
"""Of each kind."""
MOST_PIECES, LEAST_WANTED, MOST_WANTED = 6, 15, 120


def tracked_pairs(file: TrackedFile, truth: Truth, looks: LooksModel) -> KnownPairs:
    """Measure the similar pairs of a tracker's file; unclear ones are not fitted on."""
    vectors = file.vectors()
    pairs = _similar(vectors, file.vetoes)
    a, b = truth.person[pairs].T
    known = (a != NOBODY) & (b != NOBODY) & ~is_unclear(file.video, a, b)
    measured = measure([file.closed(looks)], pairs, POSITION)
    return KnownPairs(measured, a == b, known, file.vetoes, truth.person, file.video)


def gallery_pairs(gallery: KnownGallery, looks: LooksModel, source: str) -> KnownPairs:
    """Measure the similar pairs of a gallery, by looks alone."""
    by_video: dict[str, list[str]] = defaultdict(list)
    for key in sorted(gallery.tracklets):
        by_video[gallery.tracklets[key].video_id].append(key)
    keys = [key for video in sorted(by_video) for key in by_video[video]]
    of_videos = [[gallery.tracklets[key] for key in by_video[video]] for video in sorted(by_video)]
    vetoes = []
    start = 0
    for own in of_videos:
        vetoes.append(_vetoes(own) + start)
        start += len(own)
    apart = np.concatenate(vetoes)
    tracklets = [tracklet for own in of_videos for tracklet in own]
    pairs = _similar(np.stack([each.vector.numpy() for each in tracklets]), apart)
    _, person = np.unique([gallery.identity[key] for key in keys], return_inverse=True)
    same = person[pairs[:, 0]] == person[pairs[:, 1]]
    measured = measure([_without_boxes(own, looks) for own in of_videos], pairs, POSITION)
    return KnownPairs(measured, same, np.ones(len(pairs), bool), apart, person, source)


def _without_boxes(own: Sequence[PersonEmbedding], looks: LooksModel) -> Video:
    return close_video(
        looks,
        np.stack([each.vector.numpy() for each in own]),
        np.array([len(each.crops) for each in own]),
        _vetoes(own),
        [None] * len(own),
        width=1,
        height=1,
        frames_per_second=1,
    )


def _vetoes(own: Sequence[PersonEmbedding]) -> IntArray:
    """Return who of one video was seen apart in the same frames, (v, 2)."""
    position = {each.person_id: i for i, each in enumerate(own)}
    pairs = {
        tuple(sorted((i, position[other])))
        for i, each in enumerate(own)
        for other in each.seen_with
        if other in position
    }
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _similar(vectors: np.ndarray, vetoes: IntArray) -> IntArray:
    """Return the pairs (p, 2) of vectors above the threshold that have no veto."""
    similar = np.triu(vectors.astype(np.float64) @ vectors.T.astype(np.float64) > THRESHOLD, 1)
    similar[vetoes[:, 0], vetoes[:, 1]] = False
    return np.argwhere(similar)


def broken(tracks: list[Track], rng: np.random.Generator) -> Chosen:
    """Choose people who pass one camera, in as many pieces as trackers make.

    How broken the tracks are differs from gallery to gallery.
    """
    camera = rng.choice(sorted({camera for _, camera, _, _ in tracks}))
    by_person: dict[str, list[np.ndarray]] = defaultdict(list)
    for who, place, _, vectors in tracks:
        if place == camera:
            by_person[who].append(vectors)
    chosen: Chosen = []
    pieces = rng.uniform(1, MOST_PIECES)
    wanted = int(rng.integers(LEAST_WANTED, MOST_WANTED))
    for who in rng.permutation(sorted(by_person)):
        if len(chosen) >= wanted:
            break
        for vectors in by_person[who]:
            count = min(len(vectors), 1 + rng.poisson(pieces - 1))
            chosen += [(who, camera, part) for part in np.array_split(vectors, count)]
    return chosen


def draw_galleries(tracks: Tracks, sha256: str, rng: np.random.Generator) -> list[KnownPairs]:
    """Draw galleries of all kinds, each measured with the looks of other identities."""
    people = sorted({who for who, _, _ in tracks})
    drawn = []
    for fold in range(FOLDS):
        held_out = set(people[fold::FOLDS])
        looks = learned(tracks, set(people) - held_out).looks()
        for i in range(GALLERIES // FOLDS):
            shortened = SHORTENED if i % 2 else 0.0
            galleries = {
                kind: draw(tracks, held_out, rng, sha256, kind=kind, shortened=shortened)
                for kind in KINDS
            }
            galleries["broken"] = draw_by(broken, tracks, held_out, rng, sha256)
            drawn += [gallery_pairs(each, looks, kind) for kind, each in galleries.items()]
    return [known for known in drawn if len(known.same)]
