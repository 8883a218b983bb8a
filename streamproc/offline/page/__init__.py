"""The report page: one HTML file with its data inside, and the scripts and styles beside it.

It works from disk (file:) and forbids itself the network. The live page of the stream is the same
page, which asks its server for new data (`LiveReport`). Plotly's script (4.5 MB) comes from the
installed `plotly` package and is written once a directory; this package carries no other's code.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from streamproc.errors import MachineError
from streamproc.events import CandidatePerson
from streamproc.ids import hash_of, person_key_of
from streamproc.offline.artifacts import to_json
from streamproc.offline.report import likeliest_first

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from streamproc.events import DuplicateCandidate, DuplicateGroup, TrackSuspect
    from streamproc.offline.report import GalleryReport, PersonEntry, VetoedPair
    from streamproc.types import Float32Array

PAGE_NAME = "person_selection.html"
_OWN_ASSETS = (
    "page.css",
    "cards.js",
    "heatmap.js",
    "review.js",
    "choose.js",
    "audit.js",
    "page.js",
)
_PLOTLY = "plotly.min.js"
ASSET_NAMES = (*_OWN_ASSETS, _PLOTLY)

_HERE = Path(__file__).parent
_MAX_PAIRS_SHOWN = 1000
"""With OSNet most pairs are above the threshold: of 1000 persons half a million.

All are in similarity_matrix.json.
"""
MAX_HEATMAP_PERSONS = 1000
_MIN_HEATMAP_PERSONS = 2
_DECIMALS = 4
# The same for all candidates, or known from the list of persons.
_CANDIDATE_FIELDS_LEFT_OUT: dict[str, Any] = {
    "schema_version": True,
    "event_id": True,
    "occurred_at": True,
    "producer": True,
    "gallery_id": True,
    "vetoes_checked": True,
    "model": True,
    "gallery_person_count": True,
    "persons": {"__all__": CandidatePerson.model_fields.keys() - {"person_key"}},
}
_GROUP_FIELDS = {"group_id", "person_keys", "probability", "band"}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LiveReport:
    """What the live page shows of a gallery.

    `candidates` and `groups` are events in their wire form, the likeliest first; candidates that
    reviewers called different are among them. `similarity` (n, n) float32 is that of
    `embedded_keys`, of `matrix_version`; all else is of `version`.
    `seen_apart` are the pairs that have a veto, the smaller key first.
    """

    gallery_id: str
    version: int
    matrix_version: int
    timestamp: datetime
    similarity_threshold: float
    model: dict[str, Any] | None
    persons: tuple[PersonEntry, ...]
    candidates: tuple[dict[str, Any], ...]
    candidate_count: int
    groups: tuple[dict[str, Any], ...]
    embedded_keys: tuple[str, ...]
    similarity: Float32Array | None
    seen_apart: frozenset[tuple[str, str]]
    vetoed_pairs: tuple[VetoedPair, ...]


def live_data(report: LiveReport, *, known_matrix: int | None = None) -> bytes:
    """Return what the live page reads, as JSON.

    `known_matrix` is the version of the similarities that it has: they are left out then.
    """
    return to_json(_live_data(report, known_matrix))


def live_html(report: LiveReport) -> bytes:
    """Return the live page; raises OSError where its template cannot be read."""
    return _html(report.gallery_id, to_json(_live_data(report, None)), with_heatmap=True)


def galleries_template() -> str:
    """Return the list of galleries, with a place for `items`; raises OSError."""
    return (_HERE / "galleries.html").read_text(encoding="utf-8")


def asset_files() -> Iterator[tuple[str, Path]]:
    """Yield path (relative to webp_viewer) and source of all that a page may need beside it.

    Raises MachineError where the installed plotly lacks its script.
    """
    for name in _OWN_ASSETS:
        yield f"assets/{name}", _HERE / name
    yield f"assets/{_PLOTLY}", _plotly_script()


def unused_assets(report: GalleryReport) -> tuple[str, ...]:
    """Return those of the assets that the page of this report does not load."""
    return () if _has_heatmap(report) else (f"assets/{_PLOTLY}",)


def page_html(report: GalleryReport) -> bytes:
    """Return the page; raises OSError where its template cannot be read."""
    data = to_json(_page_data(report))
    return _html(report.title, data, with_heatmap=_has_heatmap(report))


def _html(title: str, data: bytes, *, with_heatmap: bool) -> bytes:
    template = Template((_HERE / "page.html").read_text(encoding="utf-8"))
    plotly = f'<script defer src="assets/{_PLOTLY}"></script>' if with_heatmap else ""
    # "</script>" and "<!--" inside a string would end the element or change how it is read.
    safe = data.decode().replace("<", "\\u003c")
    return template.substitute(title=html.escape(title), plotly=plotly, data=safe).encode()


def _has_heatmap(report: GalleryReport) -> bool:
    return _MIN_HEATMAP_PERSONS <= len(report.embedded_ids) <= MAX_HEATMAP_PERSONS


def _page_data(report: GalleryReport) -> dict[str, Any]:
    """Return what page.js reads."""
    position = {person.id: index for index, person in enumerate(report.persons)}
    similarities = None
    if _has_heatmap(report) and report.similarity is not None:
        similarities = _packed(report.similarity)
    candidates = likeliest_first(report.candidates)
    vetoed = sorted(report.vetoed_pairs, key=lambda pair: -pair.similarity)
    return {
        "gallery": report.gallery_id,
        "run": _run(report),
        "title": report.title,
        "timestamp": report.timestamp,
        "threshold": report.similarity_threshold,
        "model": report.model,
        "notices": report.notices,
        "persons": [_person(person) for person in report.persons],
        "has_similarity": report.similarity is not None,
        "embedded": [position[person_id] for person_id in report.embedded_ids],
        "similarities": similarities,
        "candidates": [_candidate(candidate) for candidate in candidates[:_MAX_PAIRS_SHOWN]],
        "candidate_count": len(candidates),
        "groups": [_group(group) for group in report.groups[:_MAX_PAIRS_SHOWN]],
        "group_count": len(report.groups),
        "vetoed": [_vetoed(pair) for pair in vetoed[:_MAX_PAIRS_SHOWN]],
        "vetoed_count": len(vetoed),
        "suspects": [_suspect(one, report.stills) for one in report.suspects[:_MAX_PAIRS_SHOWN]],
        "suspect_count": len(report.suspects),
        "seen_apart": _seen_apart(report),
    }


def _live_data(report: LiveReport, known_matrix: int | None) -> dict[str, Any]:
    """Return what page.js reads, as `_page_data` does."""
    position = {person.person_key: index for index, person in enumerate(report.persons)}
    similarities = None
    if report.similarity is not None and known_matrix != report.matrix_version:
        similarities = _packed(report.similarity)
    return {
        "live": {"version": report.version, "matrix": report.matrix_version},
        "gallery": report.gallery_id,
        "run": "",
        "title": report.gallery_id,
        "timestamp": report.timestamp.isoformat(),
        "threshold": report.similarity_threshold,
        "model": report.model,
        "notices": [],
        "persons": [_person(person) for person in report.persons],
        "has_similarity": True,
        "embedded": [position[key] for key in report.embedded_keys],
        "similarities": similarities,
        "candidates": [_without_what_is_known(one) for one in report.candidates[:_MAX_PAIRS_SHOWN]],
        "candidate_count": report.candidate_count,
        "groups": [
            {name: value for name, value in one.items() if name in _GROUP_FIELDS}
            for one in report.groups[:_MAX_PAIRS_SHOWN]
        ],
        "group_count": len(report.groups),
        "vetoed": [_vetoed(pair) for pair in report.vetoed_pairs[:_MAX_PAIRS_SHOWN]],
        "vetoed_count": len(report.vetoed_pairs),
        "suspects": [],
        "suspect_count": 0,
        "seen_apart": _by_place(report.seen_apart, position),
    }


def _without_what_is_known(candidate: dict[str, Any]) -> dict[str, Any]:
    shown = {
        name: value
        for name, value in candidate.items()
        if _CANDIDATE_FIELDS_LEFT_OUT.get(name) is not True
    }
    return shown | {"persons": [{"person_key": one["person_key"]} for one in candidate["persons"]]}


def _person(person: PersonEntry) -> dict[str, Any]:
    # Two videos of one gallery may have the same file name; the id tells them apart.
    source = person.video_name
    if isinstance(person.id, str) and "/" in person.id:
        source = person.id.rpartition("/")[0]
    return {
        "person_key": person.person_key,
        "label": str(person.id),
        "source": source,
        "video": person.video_name,
        "frames": person.frames_tracked,
        "first_frame": person.first_frame_index,
        "last_frame": person.last_frame_index,
        "first_seconds": round(person.first_seen_seconds, 3),
        "last_seconds": round(person.last_seen_seconds, 3),
        "crops": person.crop_count,
        "quality": round(person.best_quality, 3),
        "webp": person.webp,
        "webp_error": person.webp_error,
        "crops_webp": person.crops_webp,
    }


def _run(report: GalleryReport) -> str:
    """Return what stands for the persons: the same for a run that found the same tracks."""
    return hash_of(
        [
            (person.person_key, person.frames_tracked, person.first_frame_index)
            for person in report.persons
        ]
    )


def _seen_apart(report: GalleryReport) -> list[list[int]]:
    """Return for each person the places of the later ones who have a veto with it.

    `vetoed` has only those above the threshold, and not all; decisions may join any.
    """
    place_of = {person.person_key: place for place, person in enumerate(report.persons)}
    pairs = {pair.person_keys for pair in report.vetoed_pairs}
    for event in map(orjson.loads, report.person_events):
        by_id = (person_key_of(event["video_id"], other) for other in event.get("seen_with", ()))
        for other in event.get("seen_with_keys", by_id):
            pairs.add((event["person_key"], other))
    return _by_place(pairs, place_of)


def _by_place(pairs: Iterable[tuple[str, str]], place_of: dict[str, int]) -> list[list[int]]:
    """Return for each person the places of the later ones whom it makes a pair with."""
    found: list[set[int]] = [set() for _ in place_of]
    for keys in pairs:
        if place_of.keys() >= set(keys):
            first, second = sorted(place_of[key] for key in keys)
            found[first].add(second)
    return [sorted(places) for places in found]


def _candidate(candidate: DuplicateCandidate) -> dict[str, Any]:
    """Return the event as it is on the wire, without the fields that the page does not need."""
    return candidate.model_dump(mode="json", exclude_none=True, exclude=_CANDIDATE_FIELDS_LEFT_OUT)


def _group(group: DuplicateGroup) -> dict[str, Any]:
    """Return the event as it is on the wire, without the fields that the page does not need."""
    return group.model_dump(mode="json", exclude_none=True, include=_GROUP_FIELDS)


def _suspect(suspect: TrackSuspect, stills: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what the page shows of a track that was taken apart; `stills` are by person key."""
    keys = [part.person_key for part in suspect.parts]
    pictures = [stills.get(key) for key in keys]
    return {
        "frame_index": suspect.frame_index,
        "probability": suspect.probability,
        "person_keys": keys,
        "pictures": [
            one and f"data:image/webp;base64,{base64.b64encode(one).decode()}" for one in pictures
        ],
    }


def _vetoed(pair: VetoedPair) -> dict[str, Any]:
    """Return a pair in the form of a candidate."""
    return {
        "persons": [{"person_key": key} for key in pair.person_keys],
        "similarity": round(pair.similarity, _DECIMALS),
    }


def _packed(similarity: Float32Array) -> str:
    """Return the matrix (N, N) as base64 of little-endian int16 ten-thousandths.

    That is a third of the size of JSON, and quick to read.
    """
    scale = 10**_DECIMALS
    cells = np.rint(similarity * scale).clip(-scale, scale).astype("<i2")
    return base64.b64encode(cells.tobytes()).decode()


def _plotly_script() -> Path:
    """Return where the installed plotly has its script.

    Importing plotly itself would take longer than writing the page.
    """
    spec = find_spec("plotly")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        script = Path(folder) / "package_data" / _PLOTLY
        if script.is_file():
            return script
    raise MachineError(
        f"expected {_PLOTLY} in the installed plotly package, found none; install plotly>=6.5 again"
    )
