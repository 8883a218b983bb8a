"""Tracklets to groups: all pairs decided together, agglomeratively, with vetoes as cannot-links.

Two clusters are joined while what speaks for it is strongest: the mean of the upper half of the
log-odds of all pairs between them, where a pair that nobody judged counts `floor`. Of a tracker's
pieces of one person many are alike and some are not (turned away, half hidden), so the mean would
hold back too much and the best pair alone would chain. Two clusters with a veto between them never
join (constrained agglomerative clustering: Davidson and Ravi, PKDD 2005), nor do they beyond a
size. The cost grows with the number of pairs; pairs in different components never meet.

Nothing depends on the order of pairs. Ties go to the smaller numbers, so the caller numbers
tracklets by their sorted keys.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from streamproc.types import Float64Array, Int64Array

MAX_TRACKLETS = 200
"""Of a group."""
_DIGITS = 9  # of log-odds: rounding noise must not decide between ties


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """What `cluster` found of n tracklets and p pairs.

    `label` (n,): the smallest tracklet of each one's cluster. `merged_at` (p,): the log-odds at
    which the two of a pair came into one cluster, -inf where they did not. `weakest` (n,): of the
    cluster that a label names, the lowest log-odds at which parts of it were joined, inf for one.
    """

    label: Int64Array
    merged_at: Float64Array
    weakest: Float64Array

    def members(self) -> list[Int64Array]:
        """The clusters of two tracklets or more, each ascending, by their smallest."""
        order = np.argsort(self.label, kind="stable")
        starts = np.flatnonzero(np.diff(self.label[order], prepend=-1))
        return [part for part in np.split(order, starts[1:]) if len(part) > 1]


def cluster(
    pairs: Int64Array,
    log_odds: Float64Array,
    vetoes: Int64Array,
    count: int,
    *,
    stop: float,
    floor: float,
    max_tracklets: int = MAX_TRACKLETS,
) -> Clustering:
    """Cluster `count` tracklets by pairs (p, 2) with log-odds (p,); `vetoes` (v, 2) never join.

    No pair comes twice. Clusters are joined while their log-odds are at least `stop`, and log-odds
    below `floor` count as `floor`.
    """
    state = _Clusters(count, max_tracklets, floor)
    if len(vetoes):
        # What lies in two components never meets: most vetoes are of such.
        state.forbid(vetoes[same_group(vetoes, components(pairs, count))])
    values: Float64Array = np.round(np.maximum(log_odds, floor), _DIGITS).astype(np.float64)
    state.link(pairs, values)
    merged_at = np.full(len(pairs), -np.inf)
    while (best := state.pop(stop)) is not None:
        value, kept, gone = best
        merged_at[state.merge(kept, gone, value)] = value
    label = state.labels()
    return Clustering(label, merged_at, state.weakest[label])


@dataclass(slots=True)
class _Links:
    """The pairs between two clusters: which ones, and their log-odds."""

    pairs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, other: _Links) -> None:
        self.pairs += other.pairs
        self.values += other.values

    def strength(self, possible: int, floor: float) -> float:
        """Mean of the upper half of `possible` pairs, those not judged at `floor`."""
        values = self.values
        if possible == 1:
            return values[0]  # rounded already
        half = (possible + 1) // 2
        values.sort(reverse=True)  # in place: the next time little is left to do
        best = values[:half]
        return round((sum(best) + floor * (half - len(best))) / half, _DIGITS)


class _Clusters:
    """Clusters by their smallest tracklet, the links and vetoes between them, best links first."""

    def __init__(self, count: int, max_tracklets: int, floor: float) -> None:
        self._members = [[i] for i in range(count)]
        self._links: list[dict[int, _Links]] = [{} for _ in range(count)]
        self._vetoed: list[set[int]] = [set() for _ in range(count)]
        self._queue: list[tuple[float, int, int, int, int]] = []
        self._max_tracklets = max_tracklets
        self._floor = floor
        self.weakest = np.full(count, np.inf)

    def forbid(self, vetoes: Int64Array) -> None:
        for one, other in vetoes.tolist():
            self._vetoed[one].add(other)
            self._vetoed[other].add(one)

    def link(self, pairs: Int64Array, values: Float64Array) -> None:
        for row, ((one, other), value) in enumerate(
            zip(pairs.tolist(), values.tolist(), strict=True)
        ):
            if other in self._vetoed[one]:
                continue
            links = _Links([row], [value])
            self._links[one][other] = self._links[other][one] = links
            if self._max_tracklets > 1:
                self._queue.append((-value, min(one, other), max(one, other), 1, 1))
        heapq.heapify(self._queue)

    def pop(self, stop: float) -> tuple[float, int, int] | None:
        """The strongest link that still stands: its log-odds, the cluster that stays, the other."""
        while self._queue and -self._queue[0][0] >= stop:
            negative, kept, gone, kept_size, gone_size = heapq.heappop(self._queue)
            sizes = (len(self._members[kept]), len(self._members[gone]))
            if sizes == (kept_size, gone_size) and gone in self._links[kept]:
                return -negative, kept, gone
        return None

    def merge(self, kept: int, gone: int, value: float) -> list[int]:
        """Join two clusters; return the pairs between them."""
        between = self._links[kept].pop(gone).pairs
        del self._links[gone][kept]
        self._members[kept] += self._members[gone]
        self._members[gone] = []
        self.weakest[kept] = min(value, self.weakest[kept], self.weakest[gone])
        self._move(gone, kept)
        for other in sorted(self._links[kept]):
            if other in self._vetoed[kept]:
                del self._links[kept][other], self._links[other][kept]
            else:
                self._push(kept, other)
        return between

    def labels(self) -> Int64Array:
        label = np.zeros(len(self._members), np.int64)
        for smallest, members in enumerate(self._members):
            label[members] = smallest
        return label

    def _move(self, gone: int, kept: int) -> None:
        """Give the links and vetoes of a cluster to another."""
        for other, links in self._links[gone].items():
            own = self._links[kept].get(other)
            if own is None:
                self._links[kept][other] = self._links[other][kept] = links
            else:
                own.add(links)
            del self._links[other][gone]
        self._links[gone] = {}
        for other in self._vetoed[gone]:
            self._vetoed[other].discard(gone)
            self._vetoed[other].add(kept)
        self._vetoed[kept] |= self._vetoed[gone]

    def _push(self, one: int, other: int) -> None:
        kept = min(one, other)
        gone = max(one, other)
        sizes = len(self._members[kept]), len(self._members[gone])
        if sum(sizes) <= self._max_tracklets:
            strength = self._links[kept][gone].strength(sizes[0] * sizes[1], self._floor)
            heapq.heappush(self._queue, (-strength, kept, gone, *sizes))


def components(pairs: Int64Array, count: int) -> Int64Array:
    """The connected component (n,) of each tracklet, named by its smallest tracklet."""
    parent = list(range(count))
    for one, other in pairs.tolist():
        first = _root(parent, one)
        second = _root(parent, other)
        parent[max(first, second)] = min(first, second)
    return np.array([_root(parent, i) for i in range(count)], np.int64)


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def same_group(pairs: Int64Array, label: Iterable[int]) -> npt.NDArray[np.bool_]:
    """Whether both of each pair (p, 2) are in one cluster, (p,)."""
    of = np.asarray(list(label), np.int64)
    return np.asarray(of[pairs[:, 0]] == of[pairs[:, 1]])
