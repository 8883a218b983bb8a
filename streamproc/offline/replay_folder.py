"""A folder that `streamproc replay` wrote, as what works on it later reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from streamproc.decisions import parse_decision
from streamproc.errors import EventError, InputError, UsageError
from streamproc.events import DuplicateCandidate, PersonEmbedding
from streamproc.gallery.identities import pair_of
from streamproc.ids import person_key_of

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.decisions import AnyDecision
    from streamproc.gallery.identities import Pair

DECISIONS_NAME = "decisions.jsonl"
NOT_CARRIED_NAME = "decisions_not_carried_over.jsonl"
FOUND_TRACKS_NAME = "tracks.npz"
"""The tracks of a video that had none."""
"""Decisions on people whom a later run does not have."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplayFolder:
    """What a replay wrote of one gallery: run.json, its persons and the candidates."""

    path: Path
    gallery_id: str
    videos: tuple[dict[str, Any], ...]
    persons: tuple[PersonEmbedding, ...]
    candidates: tuple[DuplicateCandidate, ...]

    @property
    def decisions_path(self) -> Path:
        """Where the decisions on this gallery are kept."""
        return self.path / DECISIONS_NAME

    def vetoes(self) -> set[Pair]:
        """Return the pairs that were seen apart in the same frames."""
        return {
            pair_of(person.person_key, person_key_of(person.video_id, other))
            for person in self.persons
            for other in person.seen_with
        }


def read_folder(path: Path) -> ReplayFolder:
    """Read the folder of a replay. Raises UsageError where it is none."""
    try:
        run = orjson.loads((path / "run.json").read_bytes())
        persons_path = path / "person_embeddings.jsonl"
        persons = persons_path.read_bytes().splitlines() if persons_path.exists() else []
        candidates = (path / "duplicate_candidates.jsonl").read_bytes().splitlines()
        return ReplayFolder(
            path,
            str(run["gallery_id"]),
            tuple(dict(video) for video in run["videos"]),
            tuple(PersonEmbedding.from_json(line) for line in persons),
            tuple(DuplicateCandidate.from_json(line) for line in candidates),
        )
    except (OSError, ValueError, KeyError, TypeError, EventError) as error:
        raise UsageError(
            f"{path}: expected a folder that `streamproc replay` wrote ({error})"
        ) from error


def read_decisions(path: Path) -> list[AnyDecision]:
    """Read a file of decisions, one JSON a line; none where there is no file.

    A last line without its end is left out: its writer was ended, so nobody was told of it. Raises
    InputError, which names the line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    decisions = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        if line.strip():
            try:
                decisions.append(parse_decision(line))
            except EventError as error:
                raise InputError(f"{path}: line {number}: {error}") from error
    return decisions
