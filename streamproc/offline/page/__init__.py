"""The page: one HTML file with its data inside, and the scripts and styles that lie beside it.

Works from disk (file:) and forbids itself the network. Plotly's script comes from the installed
`plotly` package, 4.5 MB, written once a directory; this package carries no other's code.
"""

from __future__ import annotations

import base64
import html
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import MachineError
from streamproc.offline.artifacts import by_similarity, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamproc.offline.report import GalleryReport, Pair, PersonEntry, PersonId
    from streamproc.types import Float32Array

PAGE_NAME = "person_selection.html"
_OWN_ASSETS = ("page.css", "cards.js", "heatmap.js", "page.js")
_PLOTLY = "plotly.min.js"
ASSET_NAMES = (*_OWN_ASSETS, _PLOTLY)

_HERE = Path(__file__).parent
_MAX_PAIRS_SHOWN = 1000
"""With OSNet most pairs are above the threshold: of 1000 persons half a million.

All are in similarity_matrix.json.
"""
_MAX_HEATMAP_PERSONS = 1000
_MIN_HEATMAP_PERSONS = 2
_DECIMALS = 4


def asset_files() -> Iterator[tuple[str, Path]]:
    """Yield path (relative to webp_viewer) and source of all that a page may need beside it, whatever the report says.

    Raises MachineError where the installed plotly lacks its script.
    """
    for name in _OWN_ASSETS:
        yield f"assets/{name}", _HERE / name
    yield f"assets/{_PLOTLY}", _plotly_script()


def needless_assets(report: GalleryReport) -> tuple[str, ...]:
    """Those of the assets that the page of this report does not load."""
    return () if _has_heatmap(report) else (f"assets/{_PLOTLY}",)


def page_html(report: GalleryReport) -> bytes:
    """The page; raises OSError where its template cannot be read."""
    return _html(report, has_heatmap=_has_heatmap(report)).encode()


def _has_heatmap(report: GalleryReport) -> bool:
    return _MIN_HEATMAP_PERSONS <= len(report.embedded_ids) <= _MAX_HEATMAP_PERSONS


def _html(report: GalleryReport, *, has_heatmap: bool) -> str:
    template = Template((_HERE / "page.html").read_text(encoding="utf-8"))
    plotly = f'<script defer src="assets/{_PLOTLY}"></script>' if has_heatmap else ""
    data = to_json(_page_data(report, has_heatmap=has_heatmap)).decode()
    # "</script>" and "<!--" inside a string would end the element or change how it is read.
    return template.substitute(
        title=html.escape(report.title), plotly=plotly, data=data.replace("<", "\\u003c")
    )


def _page_data(report: GalleryReport, *, has_heatmap: bool) -> dict[str, Any]:
    place = {person.id: index for index, person in enumerate(report.persons)}
    return {
        "gallery": report.gallery_id,
        "title": report.title,
        "timestamp": report.timestamp,
        "threshold": report.similarity_threshold,
        "model": report.model,
        "notices": report.notices,
        "persons": [_person(person) for person in report.persons],
        "has_similarity": report.similarity is not None,
        "embedded": [place[person_id] for person_id in report.embedded_ids],
        "similarities": _packed(report.similarity)
        if has_heatmap and report.similarity is not None
        else None,
        "candidates": _pairs(report.candidates, place),
        "candidate_count": len(report.candidates),
        "vetoed": _pairs(report.vetoed_pairs, place),
        "vetoed_count": len(report.vetoed_pairs),
    }


def _person(person: PersonEntry) -> dict[str, Any]:
    return {
        "label": str(person.id),
        # Two videos of one gallery may have the same file name; the id tells them apart.
        "source": person.video_name if isinstance(person.id, int) else person.id.rpartition("/")[0],
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
    }


def _pairs(pairs: Sequence[Pair], place: dict[PersonId, int]) -> list[list[Any]]:
    """[place of one, of the other, similarity, frames apart, probability, band], the likeliest, most similar first."""
    likeliest_first = sorted(by_similarity(pairs), key=lambda pair: -(pair.probability or 0))
    return [
        [
            *sorted((place[pair.id_a], place[pair.id_b])),
            round(pair.similarity, _DECIMALS),
            pair.frames_apart,
            pair.probability,
            pair.band,
        ]
        for pair in likeliest_first[:_MAX_PAIRS_SHOWN]
    ]


def _packed(similarity: Float32Array) -> str:
    """The matrix (N, N) as base64 of little-endian int16 ten-thousandths: a third of the JSON, and quick to read."""
    scale = 10**_DECIMALS
    return base64.b64encode(
        np.rint(similarity * scale).clip(-scale, scale).astype("<i2").tobytes()
    ).decode()


def _plotly_script() -> Path:
    """Where the installed plotly keeps its script; importing plotly itself would take longer than writing the page."""
    spec = find_spec("plotly")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        script = Path(folder) / "package_data" / _PLOTLY
        if script.is_file():
            return script
    raise MachineError(
        f"expected {_PLOTLY} in the installed plotly package, found none; install plotly>=6.5 again"
    )
