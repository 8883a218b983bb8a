"""One gallery as its pages show it: what the matchers said, and what the topics said since."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.gallery import Kept, Named
from streamproc.gallery.forgetting import decisions_on
from streamproc.gallery.identities import pair_of
from streamproc.ids import person_key_of, track_key_of
from streamproc.offline.page import MAX_HEATMAP_PERSONS, LiveReport
from streamproc.offline.report import PersonEntry, VetoedPair

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streamproc.decisions import AnyDecision
    from streamproc.events import DuplicateCandidate, DuplicateGroup, Forgotten
    from streamproc.gallery.identities import Pair
    from streamproc.types import Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A gallery as the matcher answered.

    Events in their wire form, candidates with those that were withdrawn as decided. `similarity`
    (n, n) float32 is that of `keys`, None where there is none to show. `videos` say which run of
    each is known, and whether it is closed.
    """

    candidates: tuple[dict[str, Any], ...] = ()
    candidate_count: int = 0
    groups: tuple[dict[str, Any], ...] = ()
    decisions: tuple[AnyDecision, ...] = ()
    persons: tuple[dict[str, Any], ...] = ()
    videos: tuple[dict[str, Any], ...] = ()
    model: dict[str, Any] | None = None
    keys: tuple[str, ...] = ()
    similarity: Float32Array | None = None

    def has_closed(self, video_id: str, run_id: str | None) -> bool:
        """Return whether this run of a video, or another one, is closed in it."""
        return any(
            video["video_id"] == video_id and video["closed"] and run_id in (None, video["run_id"])
            for video in self.videos
        )


class LiveGallery:
    """What is known of a gallery now. Made by the page's server; used by one event loop.

    `version` rises with each change, `matrix_version` where the similarities change.
    """

    def __init__(self, gallery_id: str, snapshot: Snapshot) -> None:
        self.gallery_id = gallery_id
        self.version = 0
        self.matrix_version = 0
        self.listeners = 0
        self.changed = asyncio.Condition()
        self.decisions: dict[str, AnyDecision] = {}
        self._candidates: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, dict[str, Any]] = {}
        self._persons: dict[str, dict[str, Any]] = {}
        self._unlisted = 0
        self._model: dict[str, Any] | None = None
        self._keys: tuple[str, ...] = ()
        self._similarity: Float32Array | None = None
        self.replace(snapshot)

    def replace(self, snapshot: Snapshot) -> None:
        """Take over what the matcher says of everything."""
        self._candidates = {one["candidate_id"]: one for one in snapshot.candidates}
        self._unlisted = snapshot.candidate_count - len(snapshot.candidates)
        self._groups = {one["group_id"]: one for one in snapshot.groups}
        self.decisions = {one.decision_id: one for one in snapshot.decisions}
        self._persons = {one["person_key"]: one for one in snapshot.persons}
        self._model = snapshot.model
        self._keys = snapshot.keys
        self._similarity = snapshot.similarity
        self.version += 1
        self.matrix_version += 1

    def take_candidate(self, event: DuplicateCandidate) -> None:
        """Take a candidate, or its withdrawal; one that was decided stays to be seen."""
        if event.state == "withdrawn" and event.reason != "decided":
            self._candidates.pop(event.candidate_id, None)
        else:
            said = event.model_dump(mode="json", exclude_none=True)
            self._candidates[event.candidate_id] = said
            for one in said["persons"]:
                known = self._persons.get(one["person_key"], {})
                if known.get("run_id") != one["run_id"]:
                    self._persons[one["person_key"]] = one
            self._model = said["model"]
        self.version += 1

    def take_group(self, event: DuplicateGroup) -> None:
        """Take a group, or its withdrawal."""
        if event.state == "withdrawn":
            self._groups.pop(event.group_id, None)
        else:
            self._groups[event.group_id] = event.model_dump(mode="json", exclude_none=True)
        self.version += 1

    def take_decision(self, decision: AnyDecision) -> bool:
        """Take a decision; return whether it is new."""
        if decision.decision_id in self.decisions:
            return False
        self.decisions[decision.decision_id] = decision
        self.version += 1
        return True

    def forget(self, event: Forgotten) -> None:
        """Leave out who is forgotten, with all that names them; the similarities of the others."""
        named = Named.by(event)
        self._persons = {key: one for key, one in self._persons.items() if not named.has(key)}
        self._candidates = {
            name: one
            for name, one in self._candidates.items()
            if not any(named.has(person["person_key"]) for person in one["persons"])
        }
        self._groups = {
            name: one
            for name, one in self._groups.items()
            if not any(map(named.has, one["person_keys"]))
        }
        kept = {name: Kept(decision) for name, decision in self.decisions.items()}
        for name in decisions_on(kept, named):
            del self.decisions[name]
        stays = [row for row, key in enumerate(self._keys) if not named.has(key)]
        if self._similarity is not None and len(stays) < len(self._keys):
            self._similarity = self._similarity[np.ix_(stays, stays)]
            self._keys = tuple(self._keys[row] for row in stays)
            self.matrix_version += 1
        self.version += 1

    @property
    def person_keys(self) -> Collection[str]:
        """Who is in it."""
        return self._persons.keys()

    def has_person(self, key: str) -> bool:
        """Return whether a person is in the gallery, or was decided about."""
        return key in self._persons

    def probabilities(self) -> dict[Pair, float]:
        """Return the probability of each candidate that has one."""
        return {
            pair_of(*(person["person_key"] for person in one["persons"])): one["probability"]
            for one in self._candidates.values()
            if one.get("probability") is not None
        }

    async def announce(self) -> None:
        """Wake who waits for a change."""
        async with self.changed:
            self.changed.notify_all()

    def report(
        self,
        names: Mapping[str, str],
        pictures: Mapping[str, tuple[str, str | None]],
        threshold: float,
    ) -> LiveReport:
        """Return what the page shows.

        `names` are those of the videos by their ids, `pictures` the names of the animation of each
        track and, if there is one, of the strip of its best crops, by the key of the track. The
        parts of a track share them.
        """
        persons = [
            _entry(one, names, pictures.get(track_key_of(key), (None, None)))
            for key, one in sorted(self._persons.items())
        ]
        keys = [one.person_key for one in persons]
        groups = [one for one in self._groups.values() if set(one["person_keys"]) <= set(keys)]
        candidates = sorted(self._candidates.values(), key=_likeliest_first)
        thresholds = [one["similarity_threshold"] for one in candidates]
        least = min(thresholds, default=threshold)
        apart = self._seen_apart()
        embedded = [key for key in self._keys if key in self._persons]
        similarity = self._similarity
        if similarity is None or len(embedded) != len(self._keys):
            embedded, similarity = [], None
        return LiveReport(
            gallery_id=self.gallery_id,
            version=self.version,
            matrix_version=self.matrix_version,
            timestamp=datetime.now(UTC),
            similarity_threshold=least,
            model=self._model,
            persons=tuple(persons),
            candidates=tuple(candidates),
            candidate_count=len(candidates) + self._unlisted,
            groups=tuple(sorted(groups, key=lambda one: -one.get("probability", 0))),
            embedded_keys=tuple(embedded),
            similarity=similarity,
            seen_apart=frozenset(apart),
            vetoed_pairs=tuple(_vetoed(apart, embedded, similarity, least)),
        )

    def _seen_apart(self) -> set[tuple[str, str]]:
        found = set()
        for key, one in self._persons.items():
            by_id = (person_key_of(one["video_id"], name) for name in one.get("seen_with", ()))
            for other in one.get("seen_with_keys", by_id):
                if other in self._persons and other != key:
                    found.add((min(key, other), max(key, other)))
        return found


def _likeliest_first(candidate: Mapping[str, Any]) -> tuple[float, float, str]:
    chance = candidate.get("probability", 0)
    return (-chance, -candidate["similarity"], candidate["candidate_id"])


def _entry(
    person: Mapping[str, Any], names: Mapping[str, str], pictures: tuple[str | None, str | None]
) -> PersonEntry:
    video_id = person["video_id"]
    best = person.get("best_crop")
    animation, strip = (name and f"pictures/{name}" for name in pictures)
    return PersonEntry(
        id=person["person_key"],
        person_key=person["person_key"],
        video_name=names.get(video_id, video_id),
        frames_tracked=person.get("frames_tracked", 0),
        first_frame_index=person["first_frame_index"],
        last_frame_index=person["last_frame_index"],
        first_seen_seconds=person["first_seen_seconds"],
        last_seen_seconds=person["last_seen_seconds"],
        crop_count=person["crop_count"],
        best_quality=best["quality"] if best else 0.0,
        webp=animation,
        webp_error=None if animation else "none is announced so far",
        crops_webp=strip,
    )


def _vetoed(
    apart: set[tuple[str, str]],
    keys: list[str],
    similarity: Float32Array | None,
    threshold: float,
) -> list[VetoedPair]:
    """Return the pairs above the threshold that were seen apart, the most similar first."""
    if similarity is None or len(keys) > MAX_HEATMAP_PERSONS:
        return []
    place = {key: row for row, key in enumerate(keys)}
    pairs = []
    for a, b in sorted(apart):
        if a in place and b in place:
            cosine = float(np.round(similarity[place[a], place[b]], 4))
            if cosine > threshold:
                pairs.append(VetoedPair((a, b), cosine))
    return sorted(pairs, key=lambda pair: -pair.similarity)
