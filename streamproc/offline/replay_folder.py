"""A folder that `streamproc replay` wrote, as what works on it later reads it."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from streamproc.decisions import parse_decision
from streamproc.errors import EventError, InputError, UsageError
from streamproc.events import DuplicateCandidate, PersonEmbedding
from streamproc.gallery.identities import pair_of
from streamproc.gallery.reviewed import MAX_PAIRS_SAID, pair_count

if TYPE_CHECKING:
    from streamproc.decisions import AnyDecision
    from streamproc.gallery.identities import Pair

DECISIONS_NAME = "decisions.jsonl"
NOT_CARRIED_NAME = "decisions_not_carried_over.jsonl"
FOUND_TRACKS_NAME = "tracks.npz"
"""The tracks of a video that had none."""
"""Decisions on people whom a later run does not have."""

MAX_DECISIONS_BYTES = 128 * 1024 * 1024
"""Some 250,000 decisions of the page, which take 1.5 GB of memory."""

_VIDEO_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")


@dataclass(frozen=True, slots=True, eq=False)
class ReplayFolder:
    """What a replay wrote of one gallery: run.json, its persons and the candidates."""

    path: Path
    gallery_id: str
    videos: tuple[dict[str, Any], ...]
    persons: tuple[PersonEmbedding, ...]
    candidates: tuple[DuplicateCandidate, ...]
    working_directory: str = ""

    def path_named(self, text: str) -> Path:
        """Return a path that run.json names; see `path_named`."""
        return path_named(self.working_directory, text)

    @property
    def decisions_path(self) -> Path:
        """Where the decisions on this gallery are kept."""
        return self.path / DECISIONS_NAME

    def probabilities(self) -> dict[Pair, float]:
        """Return the probability of each candidate that has one."""
        return {
            pair_of(*(person.person_key for person in candidate.persons)): candidate.probability
            for candidate in self.candidates
            if candidate.probability is not None
        }

    def vetoes(self) -> set[Pair]:
        """Return the pairs that were seen apart in the same frames."""
        return {
            pair_of(person.person_key, other)
            for person in self.persons
            for other in person.keys_seen_apart
        }


def read_folder(path: Path) -> ReplayFolder:
    """Read the folder of a replay. Raises UsageError where it is none."""
    try:
        run = orjson.loads(read_regular(path / "run.json"))
        persons_path = path / "person_embeddings.jsonl"
        persons = read_regular(persons_path).splitlines() if persons_path.exists() else []
        candidates = read_regular(path / "duplicate_candidates.jsonl").splitlines()
        return ReplayFolder(
            path,
            str(run["gallery_id"]),
            _videos(run["videos"]),
            tuple(PersonEmbedding.from_json(line) for line in persons),
            tuple(DuplicateCandidate.from_json(line) for line in candidates),
            str(run.get("working_directory") or ""),
        )
    except (OSError, ValueError, KeyError, TypeError, EventError) as error:
        raise UsageError(
            f"{path}: expected a folder that `streamproc replay` wrote ({error!s:.500})"
        ) from error


def path_named(working_directory: str, text: str) -> Path:
    """Return a path as run.json names it: from where replay was called, or else from here.

    Older versions do not say from where, and a folder may have moved with what it names.
    """
    there = Path(working_directory, text)
    return there if there.exists() else Path(text)


def _videos(found: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Check what run.json says of its videos: their ids become names of files.

    Raises ValueError.
    """
    videos = tuple(dict(video) for video in found)
    ids = [str(video.get("video_id", "")) for video in videos]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError("run.json: expected videos with one video_id each")
    for video_id in ids:
        if not _VIDEO_ID.fullmatch(video_id):
            raise ValueError(f"run.json: expected a video_id of letters and digits: {video_id!r}")
    return videos


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """Read a file that may come from anybody. Raises OSError, also for a pipe or a device."""
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "expected a file, found something else", str(path))
        if max_bytes is not None and found.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"expected at most {max_bytes:,} bytes", str(path))
        return file.read()


def read_decisions(path: Path) -> list[AnyDecision]:
    """Read a file of decisions, one JSON a line; none where there is no file.

    A last line that was cut off is left out: its writer was ended, so nobody was told of it. Raises
    InputError, which names the line.
    """
    try:
        data = read_regular(path, MAX_DECISIONS_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    decisions = []
    pairs_said = 0
    for number, line in enumerate(data[: whole_length(data)].split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            decision = parse_decision(line)
        except EventError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        decisions.append(decision)
        pairs_said += pair_count(decision)
        if pairs_said > MAX_PAIRS_SAID:
            raise InputError(f"{path}: line {number}: expected at most {MAX_PAIRS_SAID:,} pairs")
    return decisions


def whole_length(data: bytes) -> int:
    """Return how many bytes of a file of decisions are whole lines.

    A last line without its end counts where it is a decision: an editor, or a program of another's,
    may leave the end out, and a decision that was cut off is none.
    """
    end = data.rfind(b"\n") + 1
    try:
        parse_decision(data[end:])
    except EventError:
        return end
    return len(data)
