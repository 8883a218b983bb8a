"""Identities: which tracks are one person by what reviewers decided.

Pure: the same set of decisions, in any order, gives the same identities.

Tracks are joined by pairs whose latest statement is "same". A pair whose latest statement is
"different", and a veto, must not lie inside an identity. Where one does, the tracks that were
joined are in conflict: each is an identity of its own until a reviewer solves it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, TypeAlias

from streamproc.decisions import (
    ApartDecision,
    GroupDecision,
    PairDecision,
    SelectedDecision,
    UndoDecision,
    VerifiedDecision,
)
from streamproc.ids import hash_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from streamproc.decisions import AnyDecision, Verdict

Pair: TypeAlias = tuple[str, str]
"""Two person keys, the smaller first."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One person as far as is decided: the tracks, by their person keys in order.

    `identity_id` is a hash of the gallery and the smallest key. `conflicts` are the pairs that
    must not be one person among the tracks that this one was joined with; where there are any, it
    is one track alone. `is_wanted` is None where nobody said.
    """

    identity_id: str
    person_keys: tuple[str, ...]
    is_verified: bool = False
    is_wanted: bool | None = None
    conflicts: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class Statements:
    """What holds of all that was decided: the latest statement of each pair and of each track."""

    of_pair: dict[Pair, Verdict]
    verified: frozenset[tuple[str, ...]]
    wanted: dict[str, bool]


def pair_of(a: str, b: str) -> Pair:
    """Return two person keys as a pair."""
    return (a, b) if a <= b else (b, a)


def statements_of(decisions: Iterable[AnyDecision]) -> Statements:
    """Return what holds of decisions in any order, some of them more than once."""
    of_pair: dict[Pair, Verdict] = {}
    verified: dict[tuple[str, ...], None] = {}
    wanted: dict[str, bool] = {}
    for decision in standing(decisions):
        if isinstance(decision, VerifiedDecision):
            verified[tuple(sorted(set(decision.person_keys)))] = None
        elif isinstance(decision, SelectedDecision):
            wanted.update(dict.fromkeys(decision.person_keys, decision.wanted))
        else:
            of_pair.update(_said_of_pairs(decision))
    return Statements(of_pair, frozenset(verified), wanted)


def standing(decisions: Iterable[AnyDecision]) -> list[AnyDecision]:
    """Return the decisions that nobody undid, the earliest first."""
    by_id: dict[str, AnyDecision] = {}
    for decision in sorted(decisions, key=lambda one: (one.order, one.to_json()), reverse=True):
        by_id[decision.decision_id] = decision  # of two with one id the earlier holds
    undone: set[str] = set()
    # The latest first: whether an undo holds is known before what it undoes is looked at. An undo
    # of something later than itself does nothing, so undos have no cycles.
    latest_first = sorted(by_id.values(), key=lambda one: one.order, reverse=True)
    for decision in latest_first:
        if isinstance(decision, UndoDecision) and decision.decision_id not in undone:
            target = by_id.get(decision.undoes)
            if target is not None and target.order < decision.order:
                undone.add(target.decision_id)
    return [decision for decision in reversed(latest_first) if decision.decision_id not in undone]


def _said_of_pairs(decision: AnyDecision) -> Iterator[tuple[Pair, Verdict]]:
    if isinstance(decision, PairDecision):
        yield pair_of(*decision.person_keys), decision.verdict
    elif isinstance(decision, GroupDecision):
        for a, b in combinations(sorted(set(decision.person_keys)), 2):
            yield (a, b), "same"
    elif isinstance(decision, ApartDecision):
        for a, b in product(decision.person_keys, decision.other_keys):
            yield pair_of(a, b), "different"


class Identities:
    """The identities of a gallery's tracks.

    `person_keys` are the tracks that are there, `vetoes` the pairs that were seen apart. Decisions
    may name tracks that are not there: two that were called the same as one of those are joined.
    """

    def __init__(
        self,
        gallery_id: str,
        person_keys: Collection[str],
        statements: Statements,
        vetoes: Iterable[Pair] = (),
    ) -> None:
        self._statements = statements
        joined = _Joined(statements.of_pair, vetoes)
        self._joined = joined
        self.all = tuple(self._identities(gallery_id, person_keys))
        self.of_key = {key: one for one in self.all for key in one.person_keys}

    def is_ruled_out(self, a: str, b: str) -> bool:
        """Return whether two tracks were called different, themselves or through their identities.

        A pair that is ruled out must not be proposed.
        """
        return pair_of(self._joined.root(a), self._joined.root(b)) in self._joined.apart

    @property
    def apart(self) -> frozenset[Pair]:
        """The pairs of identities that were called different, each by its root: see `roots`."""
        return self._joined.apart

    def roots(self, person_keys: Iterable[str]) -> dict[str, str]:
        """Return for each of these tracks one that names its identity, present or not."""
        return {key: self._joined.root(key) for key in person_keys}

    def decided_pairs(self) -> Iterator[tuple[Pair, bool]]:
        """Yield the pairs of tracks of which something is decided, and whether they are one person.

        Decided are two tracks of one identity, and two of identities that were called different.
        """
        for one in self.all:
            for pair in combinations(one.person_keys, 2):
                yield pair, True
        keys_of = {self._joined.root(one.person_keys[0]): one.person_keys for one in self.all}
        for a, b in sorted(self._joined.apart):
            for pair in product(keys_of.get(a, ()), keys_of.get(b, ())):
                yield pair_of(*pair), False

    def conflicts(self) -> tuple[Pair, ...]:
        """Return all pairs in question, each once."""
        return tuple(sorted({pair for one in self.all for pair in one.conflicts}))

    def _identities(self, gallery_id: str, person_keys: Collection[str]) -> Iterator[Identity]:
        members: dict[str, list[str]] = defaultdict(list)
        for key in sorted(person_keys):
            members[self._joined.root(key)].append(key)
        for keys in members.values():
            said = {self._statements.wanted[key] for key in keys if key in self._statements.wanted}
            yield Identity(
                hash_of(gallery_id, keys[0]),
                tuple(keys),
                is_verified=tuple(keys) in self._statements.verified,
                is_wanted=any(said) if said else None,
                conflicts=self._joined.conflicts_of(keys[0]),
            )


class _Joined:
    """Tracks joined by what was called the same, with the sets that are in conflict taken apart.

    `root` names the set of a track, `apart` are pairs of roots that were called different.
    """

    def __init__(self, of_pair: dict[Pair, Verdict], vetoes: Iterable[Pair]) -> None:
        self._parent: dict[str, str] = {}
        for (a, b), verdict in of_pair.items():
            if verdict == "same":
                self._join(a, b)
        different = {pair for pair, verdict in of_pair.items() if verdict == "different"}
        self._conflicts: dict[str, list[Pair]] = defaultdict(list)
        for a, b in sorted(different | set(vetoes)):
            if self._whole_root(a) == self._whole_root(b):
                self._conflicts[self._whole_root(a)].append((a, b))
        self.apart = frozenset(pair_of(self.root(a), self.root(b)) for a, b in different)

    def root(self, key: str) -> str:
        """Return the name of a track's set: the track itself where the set is in conflict."""
        whole = self._whole_root(key)
        return key if whole in self._conflicts else whole

    def conflicts_of(self, key: str) -> tuple[Pair, ...]:
        """Return the pairs that must not be in one set with a track, and were."""
        return tuple(self._conflicts.get(self._whole_root(key), ()))

    def _whole_root(self, key: str) -> str:
        while key in self._parent:
            above = self._parent[key]
            if above in self._parent:
                self._parent[key] = self._parent[above]  # halve the path
            key = above
        return key

    def _join(self, a: str, b: str) -> None:
        # The smallest key is the root: the same whatever the order.
        first, second = sorted((self._whole_root(a), self._whole_root(b)))
        if first != second:
            self._parent[second] = first
