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
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.calibration.scorer import crops_embedded
from streamproc.gallery.gallery import Settled
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
from streamproc.gallery.scope import Scope, Tracklets
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

    `stored` are the pairs that were looked at, as the gallery holds them; `candidates` those of
    closed videos that change, as they become; `dropped` those that are no longer kept. `owners`
    says whose row keeps a pair that no row had. `groups` are those that may change, as they become
    by id, None for those that are no more. `not_kept` counts the pairs above the similarity
    threshold that are not among the likeliest of either tracklet. `settled` is what holds then.
    """

    settled: Settled
    stored: dict[PairKey, Candidate] = field(default_factory=dict)
    candidates: dict[PairKey, Candidate] = field(default_factory=dict)
    dropped: set[PairKey] = field(default_factory=set)
    owners: dict[PairKey, str] = field(default_factory=dict)
    groups: dict[str, Group | None] = field(default_factory=dict)
    not_kept: int = 0


def decide_pairs(
    announcer: Announcer, calibration: Calibration, video_id: str, removed: Collection[str]
) -> Decided:
    """Decide the pairs of closed videos, `video_id` being the one that closes now.

    `removed` are the tracklets that do not stay.
    """
    gallery = announcer.gallery
    decided = Decided(Settled(calibration))
    affected = {*removed, *gallery.changed}
    to_judge_again: set[str] = set()
    groups: dict[str, Group] = {}
    for weights in sorted(gallery.weights & calibration.curves.keys()):
        curve = calibration.curves[weights]
        if curve.pair_model is not None and gallery.dim_of(weights) == len(curve.mean):
            scope = Scope(gallery, calibration, weights, video_id, removed)
            linking = _Linking(announcer, calibration, curve, curve.pair_model, scope)
            affected |= linking.decide(decided, groups)
            to_judge_again |= linking.to_judge_again(decided)
    decided.settled = Settled(calibration, frozenset(to_judge_again))
    known: set[str] = set(gallery.groups)
    if gallery.settled_by(calibration) is not None:
        known = {gallery.group_ids[key] for key in affected & gallery.group_ids.keys()}
    decided.groups = dict.fromkeys(known) | groups
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


class _Linking:
    """The closed tracklets of one gallery and one set of weights, as far as a closing needs them.

    Positions (n,) are those of some `Tracklets`, of which it makes two: the videos of pairs that
    are measured, and all tracklets whose pairs count for what is affected.
    """

    def __init__(
        self,
        announcer: Announcer,
        calibration: Calibration,
        curve: Curve,
        model: PairModel,
        scope: Scope,
    ) -> None:
        self._announcer = announcer
        self._calibration = calibration
        self._curve = curve
        self._model = model
        self._scope = scope
        self._asked: set[str] = set()  # videos
        self._asked_keys: set[str] = set()
        self._similarities: dict[PairKey, float] = {}

    def decide(self, decided: Decided, groups: dict[str, Group]) -> set[str]:
        """Add what becomes of pairs, and all groups of who is affected; return who that is."""
        scope = self._scope
        changed = scope.changed()
        self._asked = scope.videos_to_judge(changed)
        self._asked_keys = scope.keys_of_videos(self._asked)
        if not changed and not self._asked_keys:
            return set()
        judged_by_key = self._judge_new(decided)
        changed |= self._asked_keys
        for pair in judged_by_key:
            changed.update(pair)
        affected = scope.around(changed)
        decided.stored |= scope.stored
        everyone = Tracklets(self._announcer.gallery, affected.union(*scope.stored, *judged_by_key))
        judged = self._with_remembered(judged_by_key, decided.dropped, everyone)
        self._conclude(judged, everyone, affected, decided, groups)
        return affected

    def to_judge_again(self, decided: Decided) -> set[str]:
        """Return the videos with pairs that were asked for, and could not be judged."""
        found: set[str] = set()
        rows = self._announcer.gallery.rows
        for key in self._asked_keys:
            for other, entry in self._scope.neighbours(key).items():
                pair = pair_key(key, other)
                is_decided = pair in decided.candidates or pair in decided.dropped
                if not is_decided and not self._scope.is_judged(entry):
                    found |= {rows[end].tracklet.video_id for end in pair}
        return found

    # Which pairs are judged now.

    def _judge_new(self, decided: Decided) -> dict[PairKey, Evidence]:
        """Judge the similar pairs of the videos asked; return those that are kept."""
        gallery = self._announcer.gallery
        asked = Tracklets(gallery, self._asked_keys)
        pairs = self._similar(asked)
        if not pairs:
            return {}
        ends = set(chain.from_iterable(pairs))
        involved = {gallery.rows[key].tracklet.video_id for key in ends}
        own = asked
        if involved != self._asked:
            own = Tracklets(gallery, self._scope.keys_of_videos(involved))
        new = self._measured(own, pairs)
        is_kept, keeper = self._likeliest(new, own)
        kept = {}
        keys = own.keys
        columns = (new.first, new.local, is_kept, keeper)
        for pair, first, local, stays, owner in zip(
            pairs, *(column.tolist() for column in columns), strict=True
        ):
            if stays:
                decided.owners[pair] = keys[owner]
                kept[pair] = Evidence(first, local)
            elif pair in self._scope.stored:
                decided.dropped.add(pair)
        decided.not_kept += int(np.count_nonzero(~is_kept))
        return kept

    def _similar(self, asked: Tracklets) -> list[PairKey]:
        """Return the pairs above their threshold with no veto, one at least of a video asked."""
        if not asked.keys:
            return []
        scope = self._scope
        gallery = self._announcer.gallery
        keys = asked.keys
        vetoes = {(keys[one], keys[other]) for one, other in asked.vetoes.tolist()}
        least = min(self._announcer.threshold_of(tracklet) for tracklet in asked.tracklets)
        found = []
        for key, others in gallery.all_similar(keys, scope.weights, least - FLOAT32_SLACK):
            stored = scope.neighbours(key)
            for other in others:
                twice = other in asked.position and other <= key
                if twice or not scope.counts(other):
                    continue
                pair = pair_key(key, other)
                if pair not in vetoes and self._may_be_one(pair, stored.get(other)):
                    found.append(pair)
        found.sort()
        return found

    def _may_be_one(self, pair: PairKey, stored: Candidate | None) -> bool:
        rows = self._announcer.gallery.rows
        a = rows[pair[0]].tracklet
        b = rows[pair[1]].tracklet
        if a.video_id == b.video_id and a.run_id != b.run_id:
            return False
        if stored is None:
            similarity = self._similarities[pair] = pair_similarity(a, b)
        else:
            similarity = stored.similarity
        return similarity > self._announcer.pair_threshold(a, b)

    # What they are judged by.

    def _measured(self, own: Tracklets, keys: Sequence[PairKey]) -> _Judged:
        """Judge pairs of tracklets of `own`, which are all of the videos that are involved."""
        pairs = np.array([(own.position[a], own.position[b]) for a, b in keys], np.int64)
        moving = set(pairs.ravel().tolist())
        order = np.argsort(own.video, kind="stable")  # video by video
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        vetoes = number[own.vetoes]
        starts = np.searchsorted(own.video[order], np.arange(len(own.videos) + 1))
        videos = [
            _closed_video(self._model, own, order[start:end], moving, _between(vetoes, start, end))
            for start, end in pairwise(starts.tolist())
        ]
        measured = measure(videos, number[pairs], self._model.position)
        first = first_log_odds(measured, self._model)
        local = self._local(measured, first, vetoes)
        return _Judged(
            pairs,
            np.round(first, _EVIDENCE_DIGITS),  # as it is remembered
            np.round(local, _EVIDENCE_DIGITS),
            measured.kind == ACROSS,
            measured.kind == MOVING,
        )

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

    def _likeliest(self, new: _Judged, own: Tracklets) -> tuple[BoolArray, Int64Array]:
        """Return which pairs are kept (p,), and the tracklet (p,) among whose likeliest each is."""
        count = len(new.pairs)
        ends = new.pairs.ravel()  # of pair 0 both, of pair 1 both, …
        odds = np.repeat(new.local, 2)
        order = np.lexsort((new.pairs[:, ::-1].ravel(), -odds, ends))
        begins = np.searchsorted(ends[order], ends[order], side="left")
        rank = np.empty(2 * count, np.int64)
        rank[order] = np.arange(2 * count) - begins
        is_asked = np.array([name in self._asked for name in own.videos], bool)
        chosen = ((rank < MAX_KEPT) & is_asked[own.video[ends]]).reshape(-1, 2)
        is_kept: BoolArray = chosen[:, 0] | chosen[:, 1]
        keeper: Int64Array = np.where(chosen[:, 0], new.pairs[:, 0], new.pairs[:, 1])
        return is_kept, keeper

    def _with_remembered(
        self, judged: Mapping[PairKey, Evidence], dropped: Collection[PairKey], everyone: Tracklets
    ) -> _Judged:
        """Return pairs that were judged now, and all others as they were judged before."""
        known = dict(judged)
        for pair, candidate in self._scope.stored.items():
            is_new = pair in judged or pair in dropped
            if candidate.evidence is not None and not is_new and self._scope.is_judged(candidate):
                known[pair] = candidate.evidence
        # Column by column: numpy makes no array of many lists without holding up other threads.
        one = np.array([everyone.position[pair[0]] for pair in known], np.int64)
        other = np.array([everyone.position[pair[1]] for pair in known], np.int64)
        first = np.array([evidence.first for evidence in known.values()], np.float64)
        local = np.array([evidence.local for evidence in known.values()], np.float64)
        order = np.lexsort((other, one))  # sums must not depend on the order
        pairs = np.stack([one, other], axis=1)[order]
        has_way = np.array([own.trajectory is not None for own in everyone.tracklets], bool)
        is_across = everyone.video[pairs[:, 0]] != everyone.video[pairs[:, 1]]
        moves = ~is_across & has_way[pairs[:, 0]] & has_way[pairs[:, 1]]
        return _Judged(pairs, first[order], local[order], is_across, moves)

    # What it comes to.

    def _conclude(
        self,
        known: _Judged,
        everyone: Tracklets,
        affected: Collection[str],
        decided: Decided,
        groups: dict[str, Group],
    ) -> None:
        """Add what changes of the pairs of who is affected; `known` are all that tell of them."""
        log_odds = self._with_competition(known, everyone.video)
        is_affected = np.array([key in affected for key in everyone.keys], bool)
        inside = is_affected[known.pairs[:, 0]] & is_affected[known.pairs[:, 1]]
        judged = known.select(inside)
        log_odds = log_odds[inside]
        chances = np.round(sigmoid(log_odds), _PROBABILITY_DIGITS)
        grouped = self._group(judged.pairs, log_odds, chances, everyone)
        self._add_groups(grouped, everyone, groups)
        together = same_group(judged.pairs, grouped.label)
        is_shown = chances >= self._calibration.least_probabilities(together, judged.moves)
        judgements = {
            chance: self._calibration.judgement(self._curve, chance)
            for chance in set(chances.tolist())
        }
        stored = self._scope.stored
        keys = everyone.keys
        columns = (judged.first, judged.local, chances, is_shown)
        for (one, other), *values in zip(
            judged.pairs.tolist(), *(column.tolist() for column in columns), strict=True
        ):
            pair = (keys[one], keys[other])
            first, local, chance, shown = values
            old = stored.get(pair)
            before = old or self._new_candidate(pair, decided.owners[pair])
            evidence = Evidence(first, local)
            new = before.judged(judgements[chance], evidence, is_shown=shown)
            if new != old:
                decided.candidates[pair] = new

    def _add_groups(
        self, grouped: Clustering, everyone: Tracklets, groups: dict[str, Group]
    ) -> None:
        members = grouped.members()
        chances = group_probabilities(grouped, members, self._model)
        gallery_id = self._announcer.gallery.gallery_id
        for own, chance in zip(members, chances.tolist(), strict=True):
            keys = tuple(everyone.keys[i] for i in own.tolist())
            judgement = self._calibration.judgement(self._curve, chance)
            groups[group_id_of(gallery_id, keys[0])] = Group(keys, judgement)

    def _new_candidate(self, pair: PairKey, owner: str) -> Candidate:
        """Return a pair that no row has, as the row of `owner` keeps it."""
        kept_with = pair[1] if pair[0] == owner else pair[0]
        run_id = self._announcer.gallery.rows[kept_with].tracklet.run_id
        return Candidate(self._similarities[pair], run_id, "suppressed")

    def _with_competition(self, judged: _Judged, video: Int64Array) -> Float64Array:
        """Return the final log-odds (p,): those of two videos also know all other pairs."""
        if not judged.is_across.any():
            return judged.local
        place = 1 + FINAL[ACROSS].index("competition")
        weight = self._model.final[ACROSS][place]
        against = competition(judged.pairs, judged.first, video)
        log_odds: Float64Array = judged.local + np.where(judged.is_across, weight * against, 0.0)
        return log_odds

    def _group(
        self,
        pairs: Int64Array,
        log_odds: Float64Array,
        chances: Float64Array,
        everyone: Tracklets,
    ) -> Clustering:
        """Decide all pairs together, within connected components of pairs that are likely enough.

        Parts of two components are never likelier one than two, so no other pair matters.
        """
        count = len(everyone)
        component = components(pairs[chances >= self._calibration.min_probability], count)
        inside = same_group(pairs, component)
        vetoes = everyone.vetoes_of(np.unique(pairs[inside]))
        return group_tracklets(pairs[inside], log_odds[inside], vetoes, count)


def _closed_video(
    model: PairModel,
    known: Tracklets,
    positions: Int64Array,
    moving: Collection[int],
    vetoes: Int64Array,
) -> Video:
    """Compute what is asked of a video; trajectories are those of positions in `moving` alone."""
    own = [known.tracklets[i] for i in positions.tolist()]
    size = next((one.trajectory for one in own if one.trajectory is not None), None)
    return close_video(
        model.looks,
        np.stack([one.vector.numpy() for one in own]),
        np.array([crops_embedded(one) for one in own]),
        vetoes,
        [_trajectory_of(known.tracklets[i]) if i in moving else None for i in positions.tolist()],
        width=size.width_px if size else 1,
        height=size.height_px if size else 1,
        frames_per_second=size.frames_per_second if size else 1.0,
    )


def _between(vetoes: Int64Array, start: int, end: int) -> Int64Array:
    """Return the vetoes of those numbered `start` to `end`, numbered from 0."""
    return vetoes[(vetoes[:, 0] >= start) & (vetoes[:, 0] < end)] - start


def _part(measured: GalleryPairs, chosen: BoolArray) -> GalleryPairs:
    """Return some of the pairs, with their features."""
    features = {name: values[chosen] for name, values in measured.features.items()}
    return GalleryPairs(measured.pairs[chosen], measured.video, measured.kind[chosen], features)


def _trajectory_of(tracklet: PersonEmbedding) -> Trajectory | None:
    if tracklet.trajectory is None:
        return None
    frames = np.array(tracklet.trajectory.frame_indices, np.int64)
    return Trajectory(frames, tracklet.trajectory.numpy())
