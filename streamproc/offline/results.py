"""What a replay found, made from the state it leaves: the result for Python, the record for run.json, the report."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.gallery import FLOAT32_SLACK, Gallery, has_veto, pair_similarity
from streamproc.ids import person_key_of
from streamproc.offline.report import GalleryReport, Pair, PersonEntry
from streamproc.pipeline.resources import VideoStats
from streamproc.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from streamproc.crops import Plan
    from streamproc.errors import InputError
    from streamproc.events import DuplicateCandidate, PersonEmbedding
    from streamproc.pipeline.pipeline import VideoSummary
    from streamproc.reid import Embedder
    from streamproc.settings import Settings
    from streamproc.types import Float32Array, Skipped

_VERSIONS_OF = ("av", "numpy", "onnxruntime", "pillow", "plotly")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One video to replay, with its tracks file."""

    path: Path
    tracks_path: Path
    video_id: str


@dataclass(slots=True, eq=False)
class Member:
    """One video's part in a replay, and what became of it."""

    source: Source
    gallery_id: str
    stats: VideoStats = field(default_factory=VideoStats)
    summary: VideoSummary | None = None
    error: InputError | None = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs above the threshold, most similar first: candidates, and those that a veto forbids."""

    candidates: tuple[Pair, ...]
    vetoed: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a replay found.

    `similarity` (N, N) and `embeddings` (N, D) are in the order of `person_ids`.

    `person_ids` are ints for one video and "video_id/person_id" for several in one gallery.
    `notices` say what was left out of the work (then `partial` is true). `similarity` and
    `embeddings` are None where the network did not run.
    """

    gallery_id: str
    person_ids: tuple[int | str, ...]
    similarity: Float32Array | None
    embeddings: Float32Array | None
    candidates: tuple[DuplicateCandidate, ...]
    pairs: Pairs
    skipped: tuple[Skipped, ...]
    notices: tuple[str, ...]
    partial: bool
    interrupted: bool
    out: Path | None
    summary: dict[str, Any]


@dataclass(slots=True, eq=False)
class Findings:
    """What a replay gathers while it runs. Written by `Replay`, read here.

    `hrefs` and `animation_errors` are by (video_id, person_id); `partial` says that something asked
    for was not done.
    """

    settings: Settings
    shared_gallery: str | None
    out: Path | None
    galleries: dict[str, Gallery] = field(default_factory=dict)
    events: dict[str, list[DuplicateCandidate]] = field(default_factory=dict)
    hrefs: dict[tuple[str, int], str] = field(default_factory=dict)
    animation_errors: dict[tuple[str, int], str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    partial: bool = False
    interrupted: bool = False
    embedder: Embedder | None = None

    def gallery_of(self, gallery_id: str) -> Gallery:
        """The gallery of that name, made where there is none yet."""
        limit = self.settings.limits.max_persons_per_gallery
        return self.galleries.setdefault(gallery_id, Gallery(gallery_id, max_persons=limit))


@cache
def versions() -> Mapping[str, str]:
    """What this ran on, for run.json; looking it up takes 5 ms once."""
    return {name: metadata.version(name) for name in _VERSIONS_OF} | {
        "python": platform.python_version()
    }


def result_of(
    found: Findings, members: Sequence[Member], *, several: bool, wall_seconds: float
) -> Result:
    """The result of one gallery, or of one video's part of it (`several` false: persons go by their plain ids)."""
    embedder, threshold = found.embedder, found.settings.clustering.similarity_threshold
    gallery_id = members[0].gallery_id
    gallery = found.gallery_of(gallery_id)
    keys = [key for key in _keys(members) if key in gallery.rows]
    persons = [gallery.rows[key].person for key in keys]
    labels = tuple(
        key if several else person.person_id for key, person in zip(keys, persons, strict=True)
    )
    standing = set(keys)
    last_words = {e.candidate_id: e for e in found.events.get(gallery_id, ())}
    candidates = [
        event
        for event in last_words.values()
        if event.state != "withdrawn"
        and {person.person_key for person in event.persons} <= standing
    ]
    embeddings = np.stack([p.vector.numpy() for p in persons]) if persons else None
    if embedder is not None and embeddings is None:
        embeddings = np.zeros((0, embedder.dim), np.float32)
    return Result(
        gallery_id=gallery_id,
        person_ids=labels,
        similarity=None if embedder is None else gallery.matrix(keys),
        embeddings=embeddings if embedder is not None else None,
        candidates=tuple(
            sorted(candidates, key=lambda e: (-(e.probability or 0), -e.similarity, e.candidate_id))
        ),
        pairs=_pairs(gallery, keys, labels, threshold),
        skipped=tuple(skip for member in members for skip in _summary(member).skipped),
        notices=tuple(found.notices),
        partial=found.partial,
        interrupted=found.interrupted,
        out=found.out,
        summary=_run_record(
            found, members, candidate_count=len(candidates), wall_seconds=wall_seconds
        ),
    )


def _run_record(
    found: Findings, members: Sequence[Member], *, candidate_count: int, wall_seconds: float
) -> dict[str, Any]:
    seconds = sum((member.stats.seconds for member in members), Counter[str]())
    return {
        "streamproc_version": __version__,
        "versions": dict(versions()),
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "settings": found.settings.model_dump(mode="json"),
        "model": _model(found.embedder),
        "gallery_id": members[0].gallery_id,
        "videos": [_video_record(member) for member in members],
        "candidate_count": candidate_count,
        "notices": list(found.notices),
        "partial": found.partial,
        "interrupted": found.interrupted,
        "seconds": {stage: round(spent, 3) for stage, spent in sorted(seconds.items())}
        | {"wall": round(wall_seconds, 3)},
    }


def _video_record(member: Member) -> dict[str, Any]:
    summary, stats, source = _summary(member), member.stats, member.source
    return {
        "video_id": source.video_id,
        "run_id": summary.run_id,
        "path": str(source.path),
        "tracks_path": str(source.tracks_path),
        "outcome": summary.outcome,
        **summary.description,
        "persons_total": stats.persons_total,
        "persons_embedded": stats.persons_embedded,
        "frames_planned": stats.frames_planned,
        "crops_cut": stats.crops_cut,
        "crops_embedded": stats.crops_embedded,
        "animations": stats.animations_done,
        "undecodable_frames": summary.undecodable_frames,
        "track_problems": dict(sorted(summary.problems.items())),
        "skipped": [
            {"person_id": skip.person_id, "reason": skip.reason} for skip in summary.skipped
        ],
    }


def report_of(
    found: Findings, result: Result, members: Sequence[Member], *, several: bool
) -> GalleryReport:
    """What is written of one gallery, or of one video's part of it."""
    names = ", ".join(member.source.path.name for member in members)
    return GalleryReport(
        gallery_id=result.gallery_id,
        title=f"{found.shared_gallery}: {names}" if several else names,
        timestamp=datetime.now(UTC),
        similarity_threshold=found.settings.clustering.similarity_threshold,
        persons=tuple(
            entry for member in members for entry in _entries(found, member, several=several)
        ),
        embedded_ids=result.person_ids,
        embeddings=result.embeddings,
        similarity=result.similarity,
        candidates=result.pairs.candidates,
        vetoed_pairs=result.pairs.vetoed,
        candidate_events=tuple(event.to_json() for event in result.candidates),
        person_events=tuple(event.to_json() for event in _embedded(found, members)),
        model=result.summary["model"],
        notices=tuple(found.notices),
        run=result.summary,
    )


def _embedded(found: Findings, members: Sequence[Member]) -> Iterator[PersonEmbedding]:
    """The persons that have a vector, in the order of `Result.person_ids`."""
    if found.embedder is not None:
        rows = found.gallery_of(members[0].gallery_id).rows
        for key in _keys(members):
            if key in rows:
                yield rows[key].person


def _keys(members: Sequence[Member]) -> list[str]:
    return [
        person_key_of(m.source.video_id, person)
        for m in members
        for person in sorted(_plan(m).tracks)
    ]


def _entries(found: Findings, member: Member, *, several: bool) -> Iterator[PersonEntry]:
    gallery, video_id = found.gallery_of(member.gallery_id), member.source.video_id
    plan, summary = _plan(member), _summary(member)
    cut = plan.tracks.keys() - {skip.person_id for skip in summary.skipped}
    for person_id in sorted(cut):
        track, key = plan.tracks[person_id], person_key_of(video_id, person_id)
        row = gallery.rows.get(key)
        href = found.hrefs.get((video_id, person_id))
        if href is not None and several:
            href = f"../{video_id}/webp_viewer/{href}"
        ends = (track.first_frame_index, track.last_frame_index)
        yield PersonEntry(
            id=key if several else person_id,
            video_name=member.source.path.name,
            frames_tracked=track.box_count,
            first_frame_index=ends[0],
            last_frame_index=ends[1],
            first_seen_seconds=float(summary.pts_seconds[ends[0]]),
            last_seen_seconds=float(summary.pts_seconds[ends[1]]),
            crop_count=plan.crop_count[person_id],
            best_quality=row.person.crops[0].quality
            if row is not None and row.person.crops
            else 0.0,
            webp=href,
            webp_error=None
            if href
            else found.animation_errors.get((video_id, person_id), "animations were not asked for"),
        )


def _pairs(
    gallery: Gallery, keys: Sequence[str], labels: Sequence[int | str], threshold: float
) -> Pairs:
    """All pairs above the threshold, the standing candidates apart from those with a veto, most similar first."""
    label_of = dict(zip(keys, labels, strict=True))
    above = (
        np.triu(gallery.matrix(keys) > threshold - FLOAT32_SLACK, 1)
        if keys
        else np.zeros((0, 0), bool)
    )
    candidates = [
        Pair(
            label_of[a],
            label_of[b],
            n.similarity,
            probability=None if n.judgement is None else n.judgement.probability,
            band=None if n.judgement is None else n.judgement.band,
        )
        for a, b, n in gallery.pairs()
        if {a, b} <= label_of.keys()
    ]
    vetoed = []
    for i, j in np.argwhere(above).tolist():
        a, b = gallery.rows[keys[i]].person, gallery.rows[keys[j]].person
        if has_veto(a, b) and (similarity := pair_similarity(a, b)) > threshold:
            vetoed.append(Pair(labels[i], labels[j], similarity))
    return Pairs(
        *(tuple(sorted(found, key=lambda pair: -pair.similarity)) for found in (candidates, vetoed))
    )


def _summary(member: Member) -> VideoSummary:
    assert member.summary is not None
    return member.summary


def _plan(member: Member) -> Plan:
    return _summary(member).plan


def _model(embedder: Embedder | None) -> dict[str, Any] | None:
    if embedder is None:
        return None
    return {
        "name": embedder.name,
        "architecture": "osnet",
        "weights_sha256": embedder.weights_sha256,
        "dim": embedder.dim,
    }
