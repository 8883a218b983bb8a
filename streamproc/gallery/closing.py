"""What the pairs of a gallery come to when a video closes: judged by looks, motion and each other.

`linking` has the model. Pairs of one video depend on that video alone, so they are final when it
closes, and what they came to is kept in the rows. Pairs of two videos also depend on the pairs that
share a tracklet with them, whatever their video, so their competition is computed again at each
closing, from what is kept of the pairs: no vector is looked at again.

Only pairs whose two videos are closed are judged here. Those of weights without a model are left
to `calibration.scorer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.scorer import crops_embedded
from streamproc.gallery.linking.context import competition
from streamproc.gallery.linking.groups import components, same_group
from streamproc.gallery.linking.pair_features import ACROSS, MOVING, close_video
from streamproc.gallery.linking.pair_model import (
    FINAL,
    GalleryPairs,
    add_context,
    final_log_odds,
    first_log_odds,
    group_probabilities,
    group_tracklets,
    measure,
    sigmoid,
)
from streamproc.gallery.pairs import (
    FLOAT32_SLACK,
    Candidate,
    Evidence,
    Group,
    PairKey,
    group_id_of,
    pair_key,
    pair_similarity,
)
from streamproc.types import Trajectory

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from streamproc.events import PersonEmbedding
    from streamproc.gallery.announcements import Announcer
    from streamproc.gallery.calibration.curve import Curve
    from streamproc.gallery.calibration.scorer import Calibration
    from streamproc.gallery.linking.groups import Clustering
    from streamproc.gallery.linking.pair_features import Video
    from streamproc.gallery.linking.pair_model import PairModel
    from streamproc.types import BoolArray, Float64Array, Int64Array

MAX_KEPT = 20
"""A tracklet of the closing video keeps so many pairs, the likeliest ones."""
_EVIDENCE_DIGITS = 6
_PROBABILITY_DIGITS = 2  # as of all probabilities: see `calibration.scorer`


@dataclass(slots=True)
class Decided:
    """What a closing comes to.

    `candidates` are all pairs of closed videos, as they become; `dropped` those that are no longer
    kept. `owners` says whose row keeps a pair that no row had. `groups` are all of the gallery, by
    id. `not_kept` counts the pairs above the similarity threshold that are not among the likeliest
    of either tracklet.
    """

    candidates: dict[PairKey, Candidate] = field(default_factory=dict)
    dropped: set[PairKey] = field(default_factory=set)
    owners: dict[PairKey, str] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    not_kept: int = 0


def decide_pairs(
    announcer: Announcer,
    calibration: Calibration,
    video_id: str,
    tracklets: Mapping[str, PersonEmbedding],
    stored: Mapping[PairKey, Candidate],
) -> Decided:
    """Decide the pairs of closed videos, `video_id` being the one that closes now.

    `tracklets` are those that stay, `stored` all pairs of them that the gallery holds.
    """
    gallery = announcer.gallery
    closed = {name for name, record in gallery.videos.items() if record.closed} | {video_id}
    by_weights: dict[str, list[str]] = {}
    for key in sorted(tracklets):
        if tracklets[key].video_id in closed:
            by_weights.setdefault(tracklets[key].model.weights_sha256, []).append(key)
    decided = Decided()
    for weights in sorted(by_weights.keys() & calibration.curves.keys()):
        curve = calibration.curves[weights]
        if curve.pair_model is not None and gallery.dim_of(weights) == len(curve.mean):
            own = {key: tracklets[key] for key in by_weights[weights]}
            _Linking(announcer, calibration, curve, own, stored).decide(video_id, decided)
    return decided


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Pairs (p, 2) of tracklets by position, each once, the smaller first.

    `first` (p,): log-odds by the two alone. `local` (p,): the final ones, but without what other
    videos say. `is_across` (p,): of two videos; `moves` (p,): of one, both with trajectories.
    """

    pairs: Int64Array
    first: Float64Array
    local: Float64Array
    is_across: BoolArray
    moves: BoolArray

    def select(self, chosen: BoolArray) -> _Judged:
        return _Judged(*(getattr(self, name)[chosen] for name in self.__slots__))

    def join(self, other: _Judged) -> _Judged:
        arrays = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return _Judged(*(np.concatenate(both) for both in arrays))


class _Linking:
    """The closed tracklets of one gallery and one set of weights, sorted by their keys."""

    def __init__(
        self,
        announcer: Announcer,
        calibration: Calibration,
        curve: Curve,
        tracklets: Mapping[str, PersonEmbedding],
        stored: Mapping[PairKey, Candidate],
    ) -> None:
        assert curve.pair_model is not None
        self._announcer = announcer
        self._calibration = calibration
        self._curve = curve
        self._model: PairModel = curve.pair_model
        self._keys = list(tracklets)
        self._tracklets = list(tracklets.values())
        self._position = {key: i for i, key in enumerate(self._keys)}
        names = [tracklet.video_id for tracklet in self._tracklets]
        self._names, numbers = np.unique(names, return_inverse=True)
        self._video: Int64Array = numbers.astype(np.int64)
        self._beside = self._seen_beside()
        self._stored = {
            pair: candidate
            for pair, candidate in stored.items()
            if pair[0] in self._position and pair[1] in self._position
        }

    def decide(self, video_id: str, decided: Decided) -> None:
        """Add what becomes of all pairs."""
        asked = self._to_judge(video_id)
        new = self._measured(asked)
        is_kept, keeper = self._likeliest(new, asked)
        kept = new.select(is_kept)
        for (one, other), owner in zip(kept.pairs.tolist(), keeper[is_kept].tolist(), strict=True):
            decided.owners[self._keys[one], self._keys[other]] = self._keys[owner]
        decided.not_kept += int(np.count_nonzero(~is_kept))
        for one, other in new.pairs[~is_kept].tolist():
            pair = (self._keys[one], self._keys[other])
            if pair in self._stored:
                decided.dropped.add(pair)
        everything = kept.join(self._remembered(asked))
        self._conclude(everything, decided)

    # Which videos, and which of their pairs.

    def _to_judge(self, video_id: str) -> BoolArray:
        """Return which videos are judged: the closing one, and those judged by another model."""
        asked = self._names == video_id
        for (one, other), candidate in self._stored.items():
            if candidate.evidence is None or not self._is_of_curve(candidate):
                asked[self._video[[self._position[one], self._position[other]]]] = True
        found: BoolArray = asked
        return found

    def _is_of_curve(self, candidate: Candidate) -> bool:
        judgement = candidate.judgement
        return judgement is not None and judgement.calibration_id == self._curve.calibration_id

    def _similar(self, asked: BoolArray) -> Int64Array:
        """Return the pairs (p, 2) above their threshold with no veto, one at least of `asked`."""
        rows = np.flatnonzero(asked[self._video])
        weights = self._tracklets[0].model.weights_sha256
        least = min(self._announcer.threshold_of(self._tracklets[i]) for i in rows)
        keys = [self._keys[i] for i in rows.tolist()]
        found = []
        gallery = self._announcer.gallery
        for key, others in gallery.all_similar(keys, weights, least - FLOAT32_SLACK):
            one = self._position[key]
            for other_key in others:
                other = self._position.get(other_key, one)
                twice = bool(asked[self._video[other]]) and other < one
                if other != one and not twice and self._may_be_one(one, other):
                    found.append((min(one, other), max(one, other)))
        return np.array(sorted(found), np.int64).reshape(-1, 2)

    def _may_be_one(self, one: int, other: int) -> bool:
        a = self._tracklets[one]
        b = self._tracklets[other]
        if a.video_id == b.video_id and (a.run_id != b.run_id or other in self._beside[one]):
            return False
        return self._similarity(one, other) > self._announcer.pair_threshold(a, b)

    def _similarity(self, one: int, other: int) -> float:
        known = self._stored.get(pair_key(self._keys[one], self._keys[other]))
        if known is not None:
            return known.similarity
        return pair_similarity(self._tracklets[one], self._tracklets[other])

    def _seen_beside(self) -> list[set[int]]:
        """Return with whom each tracklet was seen apart in the same frames."""
        by_id = {
            (tracklet.video_id, tracklet.person_id): i for i, tracklet in enumerate(self._tracklets)
        }
        beside: list[set[int]] = [set() for _ in self._tracklets]
        for i, tracklet in enumerate(self._tracklets):
            for person_id in tracklet.seen_with:
                other = by_id.get((tracklet.video_id, person_id), i)
                if other != i:
                    beside[i].add(other)
                    beside[other].add(i)
        return beside

    # What they are judged by.

    def _measured(self, asked: BoolArray) -> _Judged:
        """Judge all similar pairs of the videos `asked`, among themselves and with all others."""
        pairs = self._similar(asked)
        involved = np.unique(self._video[pairs])  # videos
        order = np.flatnonzero(np.isin(self._video, involved))  # video by video: keys are sorted
        order = order[np.argsort(self._video[order], kind="stable")]
        number = np.zeros(len(self._keys), np.int64)
        number[order] = np.arange(len(order))
        moving = set(pairs.ravel().tolist())
        videos = [self._closed_video(np.flatnonzero(self._video == i), moving) for i in involved]
        measured = measure(videos, number[pairs], self._model.position)
        first = first_log_odds(measured, self._model)
        local = self._local(measured, first, self._vetoes_among(order.tolist(), number))
        return _Judged(pairs, first, local, measured.kind == ACROSS, measured.kind == MOVING)

    def _closed_video(self, rows: Int64Array, moving: Collection[int]) -> Video:
        """Compute what is asked of a video; trajectories are those of `moving` alone."""
        own = [self._tracklets[i] for i in rows.tolist()]
        sizes = [one.trajectory for one in own if one.trajectory is not None][:1]
        size = sizes[0] if sizes else None
        number = np.zeros(len(self._keys), np.int64)
        number[rows] = np.arange(len(rows))
        return close_video(
            self._model.looks,
            np.stack([one.vector.numpy() for one in own]),
            np.array([crops_embedded(one) for one in own]),
            self._vetoes_among(rows.tolist(), number),
            [_trajectory_of(self._tracklets[i]) if i in moving else None for i in rows.tolist()],
            width=size.width_px if size else 1,
            height=size.height_px if size else 1,
            frames_per_second=size.frames_per_second if size else 1.0,
        )

    def _vetoes_among(self, positions: Sequence[int], number: Int64Array) -> Int64Array:
        """Return the vetoes (v, 2) among some tracklets, by their `number`."""
        inside = set(positions)
        found = [
            (int(number[i]), int(number[other]))
            for i in positions
            for other in self._beside[i]
            if i < other and other in inside
        ]
        return np.array(found, np.int64).reshape(-1, 2)

    def _local(
        self, measured: GalleryPairs, first: Float64Array, vetoes: Int64Array
    ) -> Float64Array:
        """Return the final log-odds (p,), those of two videos without their competition."""
        is_across = measured.kind == ACROSS
        within = _part(measured, ~is_across)
        local = np.zeros(len(first))
        if len(within.pairs):
            add_context(within, first[~is_across], vetoes)
            local[~is_across] = final_log_odds(within, self._model)
        across = _part(measured, is_across)
        if len(across.pairs):
            across.features["competition"] = np.zeros(len(across.pairs))
            local[is_across] = final_log_odds(across, self._model)
        return local

    def _likeliest(self, new: _Judged, asked: BoolArray) -> tuple[BoolArray, Int64Array]:
        """Return which pairs are kept (p,), and the tracklet (p,) among whose likeliest each is."""
        count = len(new.pairs)
        ends = new.pairs.ravel()  # of pair 0 both, of pair 1 both, …
        odds = np.repeat(np.round(new.local, _EVIDENCE_DIGITS), 2)
        order = np.lexsort((new.pairs[:, ::-1].ravel(), -odds, ends))
        begins = np.searchsorted(ends[order], ends[order], side="left")
        rank = np.empty(2 * count, np.int64)
        rank[order] = np.arange(2 * count) - begins
        chosen = ((rank < MAX_KEPT) & asked[self._video[ends]]).reshape(-1, 2)
        is_kept: BoolArray = chosen[:, 0] | chosen[:, 1]
        keeper: Int64Array = np.where(chosen[:, 0], new.pairs[:, 0], new.pairs[:, 1])
        return is_kept, keeper

    def _remembered(self, asked: BoolArray) -> _Judged:
        """Return the pairs that no video of `asked` has, as they were judged before."""
        rows = []
        for (a, b), candidate in self._stored.items():
            one = self._position[a]
            other = self._position[b]
            evidence = candidate.evidence
            if evidence is None or asked[self._video[[one, other]]].any():
                continue
            is_across = self._video[one] != self._video[other]
            moves = not is_across and self._moves(one, other)
            rows.append((one, other, evidence.first, evidence.local, is_across, moves))
        table = np.array(rows, np.float64).reshape(-1, 6)
        pairs = table[:, :2].astype(np.int64)
        return _Judged(pairs, table[:, 2], table[:, 3], table[:, 4] > 0, table[:, 5] > 0)

    def _moves(self, one: int, other: int) -> bool:
        both = (self._tracklets[one], self._tracklets[other])
        return all(tracklet.trajectory is not None for tracklet in both)

    # What it comes to.

    def _conclude(self, judged: _Judged, decided: Decided) -> None:
        log_odds = self._with_competition(judged)
        chances = np.round(sigmoid(log_odds), _PROBABILITY_DIGITS)
        grouped = self._group(judged.pairs, log_odds, chances)
        self._add_groups(grouped, decided)
        together = same_group(judged.pairs, grouped.label)
        least = self._calibration.least_probabilities(together, judged.moves)
        for row, (one, other) in enumerate(judged.pairs.tolist()):
            pair = (self._keys[one], self._keys[other])
            evidence = Evidence(
                round(float(judged.first[row]), _EVIDENCE_DIGITS),
                round(float(judged.local[row]), _EVIDENCE_DIGITS),
            )
            judgement = self._calibration.judgement(self._curve, float(chances[row]))
            old = self._stored.get(pair) or self._new_candidate(one, other, decided.owners[pair])
            is_shown = bool(chances[row] >= least[row])
            decided.candidates[pair] = old.judged(judgement, evidence, is_shown=is_shown)

    def _add_groups(self, grouped: Clustering, decided: Decided) -> None:
        members = grouped.members()
        chances = group_probabilities(grouped, members, self._model)
        gallery_id = self._announcer.gallery.gallery_id
        for own, chance in zip(members, chances.tolist(), strict=True):
            keys = tuple(self._keys[i] for i in own.tolist())
            judgement = self._calibration.judgement(self._curve, chance)
            decided.groups[group_id_of(gallery_id, keys[0])] = Group(keys, judgement)

    def _new_candidate(self, one: int, other: int, owner: str) -> Candidate:
        """Return a pair that no row has, as the row of `owner` keeps it."""
        kept_with = self._tracklets[other if self._keys[one] == owner else one]
        return Candidate(self._similarity(one, other), kept_with.run_id, "suppressed")

    def _with_competition(self, judged: _Judged) -> Float64Array:
        """Return the final log-odds (p,): those of two videos also know all other pairs."""
        if not judged.is_across.any():
            return judged.local
        place = 1 + FINAL[ACROSS].index("competition")
        weight = self._model.final[ACROSS][place]
        against = competition(judged.pairs, judged.first, self._video)
        log_odds: Float64Array = judged.local + np.where(judged.is_across, weight * against, 0.0)
        return log_odds

    def _group(
        self, pairs: Int64Array, log_odds: Float64Array, chances: Float64Array
    ) -> Clustering:
        """Decide all pairs together, within connected components of pairs that are likely enough.

        Parts of two components are never likelier one than two, so no other pair matters.
        """
        count = len(self._keys)
        component = components(pairs[chances >= self._calibration.min_probability], count)
        inside = same_group(pairs, component)
        number = np.arange(count)
        vetoes = self._vetoes_among(np.unique(pairs[inside]).tolist(), number)
        return group_tracklets(pairs[inside], log_odds[inside], vetoes, count)


def _part(measured: GalleryPairs, chosen: BoolArray) -> GalleryPairs:
    """Return some of the pairs, with their features."""
    features = {name: values[chosen] for name, values in measured.features.items()}
    return GalleryPairs(measured.pairs[chosen], measured.video, measured.kind[chosen], features)


def _trajectory_of(tracklet: PersonEmbedding) -> Trajectory | None:
    if tracklet.trajectory is None:
        return None
    frames = np.array(tracklet.trajectory.frame_indices, np.int64)
    return Trajectory(frames, tracklet.trajectory.numpy())
