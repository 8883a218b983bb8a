"""Tracks under the identities that were decided.

Nothing is merged that nobody decided, unless the caller asks for the band `likely` as well. Where
two tracks of one identity have a box in the same frame, the surer box is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import MachineError, UsageError
from streamproc.gallery.identities import Identities, Identity, pair_of, statements_of
from streamproc.ids import hash_of, person_key_of
from streamproc.offline.artifacts import ARTIFACT_NAMES
from streamproc.offline.parts import SUSPECTS_NAME, in_parts, read_cuts
from streamproc.offline.replay_folder import FOUND_TRACKS_NAME, read_decisions, read_folder
from streamproc.offline.report import keys_of, likeliest_first
from streamproc.tracks import (
    ENDINGS,
    MergedTrack,
    ReadOptions,
    format_of,
    read_tracks,
    write_merged,
)
from streamproc.types import Track

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from streamproc.decisions import AnyDecision, Verdict
    from streamproc.events import DuplicateCandidate, PersonIdentity
    from streamproc.gallery.identities import Pair, Statements
    from streamproc.offline.replay_folder import ReplayFolder
    from streamproc.offline.stream_tracks import StreamTracks
    from streamproc.types import WrittenFormat

_ENDINGS = (".txt", ".csv", ".npz")
_MAX_NAME_BYTES = 200
_SAME: Verdict = "same"


@dataclass(frozen=True, slots=True, eq=False)
class MergedVideo:
    """One video's tracks under their identities, by rising id."""

    video_id: str
    name: str
    tracks: tuple[MergedTrack, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A gallery's tracks under their identities, and what there is to say of it.

    `conflicts` are pairs that must not be one person and were joined: their tracks stay as they
    were. `doubled_boxes` were left out, as the identity has a surer box in that frame.
    `other_decision_count` decisions were left out, as they are on other galleries. `inputs` are
    the files that all this was made of. `missing` says of which videos there are no tracks, and
    why.
    """

    videos: tuple[MergedVideo, ...]
    track_count: int
    identity_count: int
    decision_count: int
    conflicts: tuple[Pair, ...]
    doubled_boxes: int
    other_decision_count: int = 0
    inputs: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()


def merge_folder(
    path: Path,
    *,
    decisions: Path | None = None,
    with_likely: bool = False,
    only_selected: bool = False,
) -> Merged:
    """Merge the tracks of a replay's folder as its decisions say.

    `decisions` is the file of decisions, absent the folder's own. `with_likely` takes candidates
    of the band `likely` as decided, unless something rules them out. `only_selected` leaves out
    whom nobody called wanted. Raises UsageError, InputError or MachineError.
    """
    folder = read_folder(path)
    if decisions is not None and not decisions.exists():
        raise UsageError(f"{decisions}: expected a file of decisions, found none there")
    found = read_decisions(decisions or folder.decisions_path)
    decided = [one for one in found if one.gallery_id == folder.gallery_id]
    tracks_of = _tracks_in_parts(folder)
    keys = [
        person_key_of(video_id, track.person_id, track.part)
        for video_id, tracks in tracks_of.items()
        for track in tracks
    ]
    identities = _identities(folder, keys, decided, with_likely=with_likely)
    wanted = [one for one in identities.all if one.is_wanted or not only_selected]
    if only_selected and not wanted:
        raise UsageError(f"{path}: expected decisions on who is wanted, found none of that kind")
    numbers = _numbers(wanted, tracks_of)
    doubled: list[int] = []
    videos = [
        _merged_video(
            str(video["video_id"]),
            Path(str(video["path"])).stem or folder.path.name,
            tracks_of[str(video["video_id"])],
            numbers,
            doubled,
        )
        for video in folder.videos
    ]
    return Merged(
        tuple(videos),
        len(keys),
        len(wanted),
        len(decided),
        identities.conflicts(),
        sum(doubled),
        len(found) - len(decided),
        tuple(_inputs(folder, decisions)),
    )


def merge_gallery(
    gallery_id: str,
    said: Iterable[PersonIdentity],
    videos: Sequence[StreamTracks],
    *,
    decision_count: int,
    candidates: Iterable[DuplicateCandidate] = (),
    apart: Collection[Pair] = frozenset(),
    only_selected: bool = False,
) -> Merged:
    """Merge the tracks of a stream's videos as the identities that the matcher said.

    Of `candidates` the likely ones count as decided, unless two people who are `apart` would be
    one. Raises UsageError where there are no tracks, or nobody was called wanted.
    """
    there = [video for video in videos if not video.missing]
    missing = tuple(f"{video.name}: {video.missing}" for video in videos if video.missing)
    if not there:
        reason = missing[0] if missing else "no `video-ready` of it is on the topic any more"
        raise UsageError(f"gallery {gallery_id!r}: expected tracks, found none ({reason})")
    tracks_of = {video.video_id: video.tracks for video in there}
    keys = [
        person_key_of(video_id, track.person_id, track.part)
        for video_id, tracks in tracks_of.items()
        for track in tracks
    ]
    decided = list(_identities_said(gallery_id, said, keys))
    identities = _with_likely(gallery_id, decided, candidates, apart)
    wanted = [one for one in identities if one.is_wanted or not only_selected]
    if not wanted:
        raise UsageError(f"gallery {gallery_id!r}: nobody was marked as wanted")
    numbers = _numbers(wanted, tracks_of)
    doubled: list[int] = []
    merged = [
        _merged_video(video.video_id, video.name, video.tracks, numbers, doubled) for video in there
    ]
    return Merged(
        tuple(merged),
        len(keys),
        len(wanted),
        decision_count,
        tuple(sorted({pair for one in identities for pair in one.conflicts})),
        sum(doubled),
        inputs=tuple(video.path for video in there if video.path is not None),
        missing=missing,
    )


def _identities_said(
    gallery_id: str, said: Iterable[PersonIdentity], keys: Sequence[str]
) -> Iterator[Identity]:
    """Yield the identities of these tracks: as was said, and of others each by itself."""
    left = set(keys)
    for event in said:
        own = tuple(key for key in event.person_keys if key in left)
        left.difference_update(own)
        if own:
            conflicts = tuple(event.conflicts)
            yield Identity(event.identity_id, own, event.verified, event.wanted, conflicts)
    for key in sorted(left):
        yield Identity(hash_of(gallery_id, key), (key,))


def _with_likely(
    gallery_id: str,
    identities: Sequence[Identity],
    candidates: Iterable[DuplicateCandidate],
    apart: Collection[Pair],
) -> list[Identity]:
    """Return the identities, those that likely candidates join as one."""
    of_key = {key: one for one in identities for key in one.person_keys}
    set_of = {key: set(one.person_keys) for key, one in of_key.items()}
    joined = {key for pair in _likely_pairs(candidates, set_of, apart, of_key) for key in pair}
    found: dict[str, Identity] = {}
    for key in sorted(of_key):
        keys = tuple(sorted(set_of[key]))
        if not joined.intersection(keys):
            found[keys[0]] = of_key[key]
        elif keys[0] == key:
            said = {of_key[one].is_wanted for one in keys} - {None}
            wanted = any(said) if said else None
            found[key] = Identity(hash_of(gallery_id, key), keys, is_wanted=wanted)
    return list(found.values())


def write(
    merged: Merged,
    to: Path,
    written: WrittenFormat | None = None,
    *,
    with_folder: bool = False,
) -> list[Path]:
    """Write the merged tracks, one file a video; return the files.

    `to` is the file, or for several videos a folder, which is made; `with_folder` for one as well,
    unless its name ends as a file's. Without `written` the file's
    name says the format; in a folder it is MOT text. Raises UsageError or MachineError, and
    UsageError where a file would replace what the tracks were made of.
    """
    paths = _paths(merged, to, written, is_folder=with_folder or len(merged.videos) > 1)
    for path in paths.values():
        _refuse_to_replace(path, merged.inputs)
    for video in merged.videos:
        path = paths[video.video_id]
        try:
            write_merged(path, video.tracks, written or format_of(path))
        except OSError as error:
            raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from error
    return list(paths.values())


def _paths(
    merged: Merged, to: Path, written: WrittenFormat | None, *, is_folder: bool
) -> dict[str, Path]:
    """Return where each video's file goes, by its id."""
    several = len(merged.videos) > 1
    if to.is_dir() or (is_folder and not to.exists() and not to.name.endswith(_ENDINGS)):
        ending = ENDINGS[written or "mot"]
        return {key: to / f"{name}{ending}" for key, name in _file_names(merged).items()}
    if several:
        raise UsageError(
            f"{to}: expected a folder for {len(merged.videos)} videos, got the name of a file"
        )
    if written is None:
        format_of(to)
    return {video.video_id: to for video in merged.videos}


def _refuse_to_replace(path: Path, inputs: Iterable[Path]) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: expected the name of a file, found something else there")
    for one in inputs:
        if any(there.exists() and one.exists() and there.samefile(one) for there in _at(path, one)):
            raise UsageError(
                f"{path}: this is what the tracks were made of, and would be replaced: name another"
            )


def _at(path: Path, source: Path) -> tuple[Path, ...]:
    """Return the path, and its folder where the source is one: what is in it is read as well."""
    return (path, path.parent) if source.is_dir() else (path,)


def _inputs(folder: ReplayFolder, decisions: Path | None) -> Iterator[Path]:
    yield decisions or folder.decisions_path
    yield from (folder.path / name for name in ARTIFACT_NAMES)
    for video in folder.videos:
        yield from (_tracks_path(folder, video), folder.path_named(str(video["path"])))


def _file_names(merged: Merged) -> dict[str, str]:
    """Return how each video's file is called: by its name, or its id where that is no good name.

    Two may have one name, and run.json, which says it, may come from anybody.
    """
    taken = Counter(
        text.casefold() for video in merged.videos for text in (video.name, video.video_id)
    )
    return {
        video.video_id: video.name
        if taken[video.name.casefold()] == 1
        and video.name.isprintable()
        and len(video.name.encode()) <= _MAX_NAME_BYTES
        else video.video_id
        for video in merged.videos
    }


def _were_found(video: Mapping[str, Any]) -> bool:
    return video.get("tracks_from") == "detector"


def _tracks_path(folder: ReplayFolder, video: Mapping[str, Any]) -> Path:
    if not _were_found(video):
        return folder.path_named(str(video["tracks_path"]))
    inner = folder.path / str(video["video_id"]) / FOUND_TRACKS_NAME
    return inner if inner.exists() else folder.path / FOUND_TRACKS_NAME


def _tracks_in_parts(folder: ReplayFolder) -> dict[str, tuple[Track, ...]]:
    """Return the tracks of each video by its id, taken apart where the replay took them apart."""
    tracks_of = {str(video["video_id"]): _tracks(folder, video) for video in folder.videos}
    try:
        cuts = read_cuts(folder.path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder.path / SUSPECTS_NAME}: expected what `streamproc replay` wrote "
            f"({error!r:.200})"
        ) from error
    return {
        video_id: tuple(in_parts(tracks, cuts.get(video_id, {})))
        for video_id, tracks in tracks_of.items()
    }


def _tracks(folder: ReplayFolder, video: Mapping[str, Any]) -> tuple[Track, ...]:
    """Return the tracks that a video was replayed with."""
    try:
        path = _tracks_path(folder, video)
        options = ReadOptions(**video["tracks_options"])
        # Tracks that replay found are written with run.json, and in its folder.
        expected = None if _were_found(video) else str(video["tracks_sha256"])
        size = np.array([video["width_px"], video["height_px"]] * 2, np.float32)
        _ = str(video["path"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder.path / 'run.json'}: it does not say how the tracks of a video were read "
            f"({error}): replay again"
        ) from error
    if not path.exists():
        raise UsageError(
            f"{path}: the tracks of {folder.path} are not there any more: put them back, or call "
            "this from a folder where that path leads to them"
        )
    found = read_tracks(path, options)
    if expected not in (None, found.sha256):
        raise UsageError(
            f"{path}: the tracks have changed since {folder.path} was written: replay again"
        )
    if not found.is_normalised:
        return found.tracks
    return tuple(
        Track(track.person_id, track.frame_indices, track.boxes_xyxy * size, track.confidences)
        for track in found.tracks
    )


def _identities(
    folder: ReplayFolder, keys: Sequence[str], decided: list[AnyDecision], *, with_likely: bool
) -> Identities:
    statements = statements_of(decided)
    vetoes = folder.vetoes()
    identities = Identities(folder.gallery_id, keys, statements, vetoes)
    if not with_likely:
        return identities
    return _joined_by_likely(folder, keys, statements, vetoes, identities)


def _joined_by_likely(
    folder: ReplayFolder,
    keys: Sequence[str],
    statements: Statements,
    vetoes: set[Pair],
    identities: Identities,
) -> Identities:
    """Join the likely candidates as well, the likeliest first, where nothing speaks against it."""
    apart = vetoes | {pair for pair, said in statements.of_pair.items() if said == "different"}
    set_of = {key: set(identities.of_key[key].person_keys) for key in keys}
    pairs = _likely_pairs(folder.candidates, set_of, apart, identities.of_key)
    joined = statements.of_pair | dict.fromkeys(pairs, _SAME)
    said = type(statements)(joined, statements.verified, statements.wanted)
    return Identities(folder.gallery_id, keys, said, vetoes)


def _likely_pairs(
    candidates: Iterable[DuplicateCandidate],
    set_of: dict[str, set[str]],
    apart: Collection[Pair],
    of_key: Mapping[str, Identity],
) -> Iterator[Pair]:
    """Yield the likely candidates by which tracks are joined, the likeliest first.

    `set_of` are the tracks of each one's person, and changes as they are joined. None is joined
    where two of them are `apart`, or that is in conflict.
    """
    for candidate in likeliest_first(candidates):
        a, b = keys_of(candidate)
        if candidate.band != "likely" or a not in set_of or b not in set_of:
            continue
        ones, others = set_of[a], set_of[b]
        if ones == others or any(pair_of(x, y) in apart for x in ones for y in others):
            continue
        if of_key[a].conflicts or of_key[b].conflicts:
            continue
        yield pair_of(a, b)
        both = ones | others
        set_of.update(dict.fromkeys(both, both))


def _numbers(
    identities: Iterable[Identity], tracks_of: Mapping[str, Sequence[Track]]
) -> dict[str, int]:
    """Return the id that each track takes, by its key: one number an identity in all videos.

    An identity takes the smallest id of its tracks. Where another has it, as in two videos, it
    takes the next one that no track has.
    """
    id_of = {
        person_key_of(video_id, track.person_id, track.part): track.person_id
        for video_id, tracks in tracks_of.items()
        for track in tracks
    }
    free = count(max([0, *id_of.values()]) + 1)
    taken: set[int] = set()
    numbers: dict[str, int] = {}
    smallest_first = sorted(
        (min(id_of[key] for key in one.person_keys), one.person_keys) for one in identities
    )
    for smallest, keys in smallest_first:
        number = next(free) if smallest in taken else smallest
        taken.add(number)
        numbers.update(dict.fromkeys(keys, number))
    return numbers


def _merged_video(
    video_id: str,
    name: str,
    tracks: Sequence[Track],
    numbers: Mapping[str, int],
    doubled: list[int],
) -> MergedVideo:
    pieces: dict[int, list[Track]] = defaultdict(list)
    for track in tracks:
        number = numbers.get(person_key_of(video_id, track.person_id, track.part))
        if number is not None:
            pieces[number].append(track)
    merged = []
    for number, parts in sorted(pieces.items()):
        one = _merged_track(number, parts)
        doubled.append(sum(map(len, parts)) - len(one.track))
        merged.append(one)
    return MergedVideo(video_id, name, tuple(merged))


def _merged_track(number: int, parts: Sequence[Track]) -> MergedTrack:
    """Put tracks together as one; of two boxes in a frame the surer one stays."""
    frames = np.concatenate([part.frame_indices for part in parts])
    confidences = np.concatenate([part.confidences for part in parts])
    ids = np.concatenate([np.full(len(part), part.person_id, np.int64) for part in parts])
    boxes = np.concatenate([part.boxes_xyxy for part in parts])
    surest_first = np.lexsort((ids, -confidences, frames))
    _, first_rows = np.unique(frames[surest_first], return_index=True)
    rows = surest_first[first_rows]
    track = Track(number, frames[rows], boxes[rows], confidences[rows])
    originals = tuple(sorted({part.person_id for part in parts}))
    return MergedTrack(track, originals, ids[rows])
