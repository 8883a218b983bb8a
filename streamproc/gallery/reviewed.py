"""What a gallery keeps of its reviewers' decisions, and what follows from them.

Pure. What follows is a function of the decisions and of the rows of those whom they name: the same
set of decisions, in any order, gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamproc.decisions import (
    ApartDecision,
    GroupDecision,
    UndoDecision,
)
from streamproc.gallery.identities import Identities, Statements, statements_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from streamproc.decisions import AnyDecision
    from streamproc.gallery.identities import Identity, Pair

MAX_DECISIONS = 100_000
"""The most decisions of a gallery."""
MAX_PAIRS_SAID = 5_000_000
"""The most pairs they speak of: each costs some 200 bytes, and a list of 200 keys says 19,900."""
_FIRST = (float("-inf"), "")


@dataclass(frozen=True, slots=True)
class Kept:
    """A decision as a gallery keeps it.

    `is_lost`: it is on people whom a later run of their video does not have. It says nothing any
    more, and is kept to be shown.
    """

    decision: AnyDecision
    is_lost: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What holds of all decisions of a gallery.

    `named` are the tracks that they speak of, `pair_total` is of how many pairs they do. `latest`
    is the order of the last one.
    """

    statements: Statements = field(default_factory=lambda: Statements({}, frozenset(), {}))
    named: frozenset[str] = frozenset()
    latest: tuple[float, str] = _FIRST
    pair_total: int = 0

    @classmethod
    def by(cls, kept: Iterable[Kept]) -> Said:
        """Return what decisions say together."""
        decisions = [one.decision for one in kept if not one.is_lost]
        statements = statements_of(decisions)
        latest = max((one.order for one in decisions), default=_FIRST)
        total = sum(map(pair_count, decisions))
        return cls(statements, frozenset(_named(statements)), latest, total)

    def after(self, decision: AnyDecision) -> Said | None:
        """Return what holds once one more decision is heard, None where all must be looked at."""
        if isinstance(decision, UndoDecision) or decision.order <= self.latest:
            return None
        new = statements_of([decision])
        statements = Statements(
            self.statements.of_pair | new.of_pair,
            self.statements.verified | new.verified,
            self.statements.wanted | new.wanted,
        )
        total = self.pair_total + pair_count(decision)
        return Said(statements, self.named.union(_named(new)), decision.order, total)


def _named(statements: Statements) -> Iterator[str]:
    for pair in statements.of_pair:
        yield from pair
    for keys in statements.verified:
        yield from keys
    yield from statements.wanted


class Reviewed:
    """The identities of a gallery as far as something is decided, and what is ruled out.

    `notable` are the identities of which more is known than that a track is one, by their ids.
    `roots` says in which identity a named track is, `apart` which roots were called different.
    """

    def __init__(
        self, gallery_id: str, said: Said, present: Collection[str], vetoes: Collection[Pair]
    ) -> None:
        self.said = said
        self.vetoes = frozenset(vetoes)
        self.present = frozenset(present)
        self.identities = Identities(gallery_id, present, said.statements, vetoes)
        self.notable: Mapping[str, Identity] = {
            one.identity_id: one for one in self.identities.all if _is_notable(one)
        }
        self.roots = self.identities.roots(said.named)
        self.apart = self.identities.apart

    def rules_out(self, a: str, b: str) -> bool:
        """Return whether two tracks must not be proposed as one."""
        return bool(self.apart) and self.identities.is_ruled_out(a, b)

    def are_apart(self, keys: Collection[str]) -> bool:
        """Return whether any two of these tracks must not be proposed as one."""
        if not self.apart:
            return False
        found = sorted({self.roots[key] for key in keys if key in self.roots})
        return any(
            (one, other) in self.apart
            for place, one in enumerate(found)
            for other in found[place + 1 :]
        )

    def differs_for(self, other: Reviewed) -> set[str]:
        """Return the named tracks that may be ruled out with others than after `other`."""
        if self is other or not (self.apart or other.apart):
            return set()
        changed = {root for pair in self.apart ^ other.apart for root in pair}
        return {
            key
            for key in self.said.named | other.said.named
            if self.roots.get(key, key) != other.roots.get(key, key)
            or self.roots.get(key, key) in changed
        }


def _is_notable(one: Identity) -> bool:
    return bool(
        len(one.person_keys) > 1 or one.is_verified or one.is_wanted is not None or one.conflicts
    )


def keys_named(decision: AnyDecision) -> tuple[str, ...]:
    """Return the tracks that a decision speaks of."""
    if isinstance(decision, UndoDecision):
        return ()
    if isinstance(decision, ApartDecision):
        return (*decision.person_keys, *decision.other_keys)
    return tuple(decision.person_keys)


def pair_count(decision: AnyDecision) -> int:
    """Return of how many pairs a decision speaks, 1 for one that speaks of none."""
    if isinstance(decision, GroupDecision):
        return len(decision.person_keys) * (len(decision.person_keys) - 1) // 2
    if isinstance(decision, ApartDecision):
        return len(decision.person_keys) * len(decision.other_keys)
    return 1
