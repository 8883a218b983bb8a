"""Decisions that a replay finds: those of its own folder, and those of a file that is named."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamproc.errors import UsageError
from streamproc.gallery.carry_over import carry_over
from streamproc.gallery.identities import Identities, statements_of
from streamproc.offline.replay_folder import (
    DECISIONS_NAME,
    read_decisions,
    read_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from streamproc.decisions import AnyDecision
    from streamproc.events import PersonEmbedding


@dataclass(frozen=True, slots=True, eq=False)
class PastDecisions:
    """Decisions on earlier runs, the persons that they were made on, and each video's tracks.

    `tracks` stand for the tracks of a video as `tracks_of` does.
    """

    decisions: tuple[AnyDecision, ...] = ()
    persons: tuple[PersonEmbedding, ...] = ()
    tracks: Mapping[str, str] = field(default_factory=dict)

    def on(
        self, gallery_id: str, persons: Sequence[PersonEmbedding], tracks: Mapping[str, str]
    ) -> CurrentDecisions:
        """Return what was decided, for the persons of this run of a gallery and its tracks."""
        decisions = [one for one in self.decisions if one.gallery_id == gallery_id]
        changed = {
            video for video, was in self.tracks.items() if video in tracks and tracks[video] != was
        }
        carried = carry_over(decisions, self.persons, persons, changed)
        keys = [person.person_key for person in persons]
        identities = Identities(gallery_id, keys, statements_of(carried.decisions))
        return CurrentDecisions(carried.decisions, carried.lost, identities)


@dataclass(frozen=True, slots=True, eq=False)
class CurrentDecisions:
    """What was decided, for the persons of this run; `lost` names somebody who is not in it."""

    decisions: tuple[AnyDecision, ...]
    lost: tuple[AnyDecision, ...]
    identities: Identities


def lines_of(decisions: Iterable[AnyDecision]) -> bytes:
    """Return decisions as the content of a file."""
    return b"".join(decision.to_json() + b"\n" for decision in decisions)


def tracks_of(video: Mapping[str, Any]) -> str:
    """Return what stands for the tracks of a video of run.json, "" where it does not say."""
    sha256 = video.get("tracks_sha256") or video.get("tracks_identity")
    return f"{sha256} {sorted(video.get('tracks_options', {}).items())}" if sha256 else ""


def read_past(folders: Iterable[Path], named: Path | None) -> PastDecisions:
    """Read the decisions in `folders` and in the file `named`, if there are any.

    What they were made on is in run.json and person_embeddings.jsonl beside them. Raises
    InputError, or UsageError where the file that was named is not there.
    """
    if named is not None and not named.is_file():
        raise UsageError(f"{named}: expected a file of decisions, found none there")
    paths = [folder / DECISIONS_NAME for folder in folders]
    if named is not None:
        paths.append(named)
    decisions: dict[str, AnyDecision] = {}
    persons: dict[str, PersonEmbedding] = {}
    tracks: dict[str, str] = {}
    for path in paths:
        found = read_decisions(path)
        if not found:
            continue
        decisions |= {decision.decision_id: decision for decision in found}
        with contextlib.suppress(UsageError):  # no folder of a replay: keys are taken as they are
            folder = read_folder(path.parent)
            persons |= {person.person_key: person for person in folder.persons}
            tracks |= {str(video["video_id"]): tracks_of(video) for video in folder.videos}
    return PastDecisions(tuple(decisions.values()), tuple(persons.values()), tracks)
