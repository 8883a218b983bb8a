"""Which tracklets and pairs of a gallery a closing touches; all others stay as they are.

What a pair of closed videos comes to follows from the pairs that share a tracklet with it, and its
group from the connected component of likely pairs that it is in. So a closing looks at the pairs
that come, go or change, at those that share a tracklet with them, and at the components of all
these. What the closings before have left is settled (`Gallery.settled`).
"""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.pairs import pair_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from streamproc.events import PersonEmbedding
    from streamproc.gallery.calibration.scorer import Calibration
    from streamproc.gallery.gallery import Gallery
    from streamproc.gallery.pairs import Candidate, PairKey
    from streamproc.types import Int64Array


class Tracklets:
    """Some tracklets of a gallery by position (n,), sorted by their keys."""

    def __init__(self, gallery: Gallery, keys: Iterable[str]) -> None:
        self.keys = sorted(keys)
        self.position = {key: i for i, key in enumerate(self.keys)}
        self.tracklets = [gallery.rows[key].tracklet for key in self.keys]
        names = [tracklet.video_id for tracklet in self.tracklets]
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        self.videos = list(numbers)
        self.video: Int64Array = np.array([numbers[name] for name in names], np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Tracklets({len(self)} of {len(self.videos)} videos)"

    @cached_property
    def vetoes(self) -> Int64Array:
        """The vetoes (v, 2) among all of them."""
        return vetoes_among(self.tracklets)

    def vetoes_of(self, positions: Int64Array) -> Int64Array:
        """Return the vetoes (v, 2) among those at `positions` (k,), ascending."""
        return positions[vetoes_among([self.tracklets[i] for i in positions.tolist()])]


def vetoes_among(tracklets: Sequence[PersonEmbedding]) -> Int64Array:
    """Return which of n tracklets were seen apart in the same frames: (v, 2), the smaller first.

    It is enough that one of the two says so. Parts of one track have a veto as well.
    """
    has_parts = any(one.part is not None for one in tracklets)
    named_by = _named_by_key(tracklets) if has_parts else _named_by_id(tracklets)
    named = np.array(list(chain.from_iterable(named_by)), np.int64)
    owner = np.repeat(np.arange(len(tracklets)), [len(others) for others in named_by])
    codes = np.minimum(owner, named) * len(tracklets) + np.maximum(owner, named)
    codes = np.unique(codes[owner != named])
    return np.stack(np.divmod(codes, max(1, len(tracklets))), axis=1)


def _named_by_id(tracklets: Sequence[PersonEmbedding]) -> list[list[int]]:
    """Return whom each whole track says it was seen apart from, by position."""
    by_video: dict[str, dict[int, int]] = {}
    for i, one in enumerate(tracklets):
        by_video.setdefault(one.video_id, {})[one.person_id] = i
    found = []
    for one in tracklets:
        own = by_video[one.video_id]
        found.append([own[person_id] for person_id in one.seen_with if person_id in own])
    return found


def _named_by_key(tracklets: Sequence[PersonEmbedding]) -> list[list[int]]:
    """Return the same where some are parts, with the other parts of each one's track."""
    place_of = {one.person_key: i for i, one in enumerate(tracklets)}
    parts_of: dict[str, list[int]] = {}
    for i, one in enumerate(tracklets):
        parts_of.setdefault(one.track_key, []).append(i)
    found = []
    for one in tracklets:
        named = [place_of[key] for key in one.keys_seen_apart if key in place_of]
        found.append([*named, *parts_of[one.track_key]])
    return found


class Scope:
    """What the closing of `video_id` touches of one gallery and one set of weights.

    `removed` are the tracklets that do not stay. `stored` has the pairs of all tracklets that were
    asked for: those of closed videos, with these weights.
    """

    def __init__(
        self,
        gallery: Gallery,
        calibration: Calibration,
        weights: str,
        video_id: str,
        removed: Collection[str],
    ) -> None:
        self._gallery = gallery
        self._settled = gallery.settled_by(calibration)
        self._least = calibration.min_probability
        self._calibration_id = calibration.curves[weights].calibration_id
        self.weights = weights
        self._video_id = video_id
        self._removed = removed
        self._counts: dict[str, bool] = {}
        self._neighbours: dict[str, Mapping[str, Candidate]] = {}
        self.stored: dict[PairKey, Candidate] = {}

    def counts(self, key: str) -> bool:
        """Return whether a tracklet stays, has these weights, and its video is closed."""
        known = self._counts.get(key)
        if known is None:
            known = self._counts[key] = self._is_closed(key)
        return known

    def _is_closed(self, key: str) -> bool:
        row = self._gallery.rows.get(key)
        if row is None or key in self._removed:
            return False
        if row.tracklet.model.weights_sha256 != self.weights:
            return False
        video_id = row.tracklet.video_id
        record = self._gallery.videos.get(video_id)
        return video_id == self._video_id or (record is not None and record.closed)

    def keys_of_videos(self, videos: Iterable[str]) -> set[str]:
        """Return the tracklets of some videos that count."""
        keys = chain.from_iterable(map(self._gallery.keys_of_video, videos))
        return {key for key in keys if self.counts(key)}

    def neighbours(self, key: str) -> Mapping[str, Candidate]:
        """Return the pairs of a tracklet that counts, by the other's key."""
        known = self._neighbours.get(key)
        if known is None:
            found = self._gallery.candidates_of(key, with_suppressed=True)
            known = {other: entry for other, entry in found.items() if self.counts(other)}
            self._neighbours[key] = known
            for other, entry in known.items():
                self.stored[pair_key(key, other)] = entry
        return known

    def changed(self) -> set[str]:
        """Return the tracklets whose pairs may have come or gone, those of the video among them."""
        gallery = self._gallery
        if self._settled is None:
            return {key for key in gallery.rows if self.counts(key)}
        found = self.keys_of_videos({self._video_id, *self._settled.to_judge_again})
        near = [gallery.candidates_of(key, with_suppressed=True) for key in self._removed]
        others = chain(gallery.changed, *near)
        return found | {key for key in others if self.counts(key)}

    def videos_to_judge(self, changed: Collection[str]) -> set[str]:
        """Return the closing video, and those with pairs that another model judged.

        Pairs with the closing video are new to every model.
        """
        asked = {self._video_id}
        seen = set(changed)
        waiting = list(changed)
        while waiting:
            key = waiting.pop()
            for other, entry in self.neighbours(key).items():
                both = {self._video_of(key), self._video_of(other)}
                if self._video_id in both or self.is_judged(entry) or both <= asked:
                    continue
                more = self.keys_of_videos(both - asked) - seen
                asked |= both
                seen |= more
                waiting += more
        return asked

    def is_judged(self, candidate: Candidate) -> bool:
        """Return whether a pair has what this model keeps of pairs of closed videos."""
        judgement = candidate.judgement
        if candidate.evidence is None or judgement is None:
            return False
        return judgement.calibration_id == self._calibration_id

    def around(self, changed: Collection[str]) -> set[str]:
        """Return whose pairs may be judged or grouped otherwise where these have other pairs.

        They are those that share a pair with one of `changed`, and who is joined to these by pairs
        that are likely enough. Of pairs between two others nothing changes.
        """
        found = set(changed)
        for key in changed:
            found |= self.neighbours(key).keys()
        waiting = list(found)
        while waiting:
            for other, entry in self.neighbours(waiting.pop()).items():
                if other not in found and self._is_likely(entry):
                    found.add(other)
                    waiting.append(other)
        return found

    def _is_likely(self, candidate: Candidate) -> bool:
        judgement = candidate.judgement
        if judgement is None or candidate.evidence is None:
            return False
        return judgement.probability >= self._least

    def _video_of(self, key: str) -> str:
        return self._gallery.rows[key].tracklet.video_id
