"""Decisions that a replay finds: those of its own folder, and those of a file that is named."""

from __future__ import annotations

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
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from streamproc.decisions import AnyDecision
    from streamproc.events import PersonEmbedding
    from streamproc.gallery.carry_over import Carried


@dataclass(frozen=True, slots=True, eq=False)
class PastFile:
    """A file of decisions on an earlier run, the persons they were made on, and the videos' tracks.

    `tracks` stand for the tracks of a video as `tracks_of` does.
    """

    path: Path
    decisions: tuple[AnyDecision, ...]
    persons: tuple[PersonEmbedding, ...] = ()
    tracks: Mapping[str, str] = field(default_factory=dict)

    def on(
        self, gallery_id: str, persons: Sequence[PersonEmbedding], tracks: Mapping[str, str]
    ) -> Carried:
        """Return the decisions of a gallery under the keys of this run's persons."""
        decisions = [one for one in self.decisions if one.gallery_id == gallery_id]
        changed = {
            video for video, was in self.tracks.items() if video in tracks and tracks[video] != was
        }
        return carry_over(decisions, self.persons, persons, changed)


@dataclass(frozen=True, slots=True, eq=False)
class PastDecisions:
    """All files of decisions that a replay reads. A decision in several is taken of the first."""

    files: tuple[PastFile, ...] = ()

    def on(
        self, gallery_id: str, persons: Sequence[PersonEmbedding], tracks: Mapping[str, str]
    ) -> CurrentDecisions:
        """Return what was decided, for the persons of this run of a gallery and its tracks."""
        decisions: dict[str, AnyDecision] = {}
        lost: dict[str, AnyDecision] = {}
        for file in self.files:  # each by itself: the same key may be another person in each
            carried = file.on(gallery_id, persons, tracks)
            for decision in carried.decisions:
                decisions.setdefault(decision.decision_id, decision)
            lost |= {decision.decision_id: decision for decision in carried.lost}
        kept = tuple(decisions.values())
        identities = Identities(
            gallery_id, [person.person_key for person in persons], statements_of(kept)
        )
        left = tuple(one for one in lost.values() if one.decision_id not in decisions)
        return CurrentDecisions(kept, left, identities)

    def elsewhere(self, path: Path, gallery_ids: Collection[str]) -> tuple[AnyDecision, ...]:
        """Return the decisions in one file that are on none of these galleries."""
        return tuple(
            decision
            for file in self.files
            if file.path == path
            for decision in file.decisions
            if decision.gallery_id not in gallery_ids
        )


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
    """Return what stands for the tracks of a video of run.json, "" where it does not say.

    Tracks that were taken apart are others than before: their parts have keys of their own.
    """
    sha256 = video.get("tracks_sha256") or video.get("tracks_identity")
    if not sha256:
        return ""
    apart = video.get("tracks_in_parts") or ""
    return f"{sha256} {sorted(video.get('tracks_options', {}).items())} {apart}".rstrip()


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
    files = ((path, read_decisions(path)) for path in paths)
    return PastDecisions(tuple(_past_file(path, found) for path, found in files if found))


def _past_file(path: Path, decisions: Sequence[AnyDecision]) -> PastFile:
    try:
        folder = read_folder(path.parent)
    except UsageError:  # no folder of a replay: keys are taken as they are
        return PastFile(path, tuple(decisions))
    tracks = {str(video["video_id"]): tracks_of(video) for video in folder.videos}
    return PastFile(path, tuple(decisions), folder.persons, tracks)
