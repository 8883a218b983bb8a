"""The artifact files of a report, as bytes by file name. Pure: reads no disk and writes none.

Names and keys are those of the batch pipeline before streamproc, so that what read its files reads
ours. Numbers are float32 and written with the fewest digits that give the same float32 back.
"""

from __future__ import annotations

import io
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamproc.offline.report import GalleryReport, Pair, PersonId
    from streamproc.types import Float32Array

ARTIFACT_NAMES = (
    "similarity_matrix.json",
    "similarity_matrix.npy",
    "embeddings.json",
    "embeddings.npy",
    "duplicate_candidates.jsonl",
    "person_embeddings.jsonl",
    "run.json",
)


def artifacts(report: GalleryReport) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each artifact; no similarity and no embeddings where the report has none."""
    if report.embeddings is not None and report.similarity is not None:
        embeddings = np.ascontiguousarray(report.embeddings, dtype=np.float32)
        similarity = np.ascontiguousarray(report.similarity, dtype=np.float32)
        yield "embeddings.npy", _npy(embeddings)
        yield "embeddings.json", to_json(_embeddings(report, embeddings))
        yield "similarity_matrix.npy", _npy(similarity)
        yield "similarity_matrix.json", to_json(_similarity(report, similarity))
        yield "person_embeddings.jsonl", _lines(report.person_events)
    yield "duplicate_candidates.jsonl", _lines(report.candidate_events)
    yield "run.json", to_json(report.run, indent=True) + b"\n"


def to_json(value: object, *, indent: bool = False) -> bytes:
    """Serialise with numpy arrays and scalars as numbers, and paths as text."""
    options = (
        orjson.OPT_SERIALIZE_NUMPY
        | orjson.OPT_NON_STR_KEYS
        | (orjson.OPT_INDENT_2 if indent else 0)
    )
    return orjson.dumps(value, default=_path_as_text, option=options)


def by_similarity(pairs: Iterable[Pair]) -> list[Pair]:
    """The most similar first; pairs alike in that keep their order."""
    return sorted(pairs, key=lambda pair: -pair.similarity)


def _lines(events: Iterable[bytes]) -> bytes:
    return b"".join(event.rstrip(b"\n") + b"\n" for event in events)


def _embeddings(report: GalleryReport, embeddings: Float32Array) -> dict[str, Any]:
    return {
        "embeddings": dict(zip(map(str, report.embedded_ids), embeddings, strict=True)),
        "person_ids": report.embedded_ids,
        "feature_dimension": embeddings.shape[1],
        "model": report.model,
        "timestamp": report.timestamp,
    }


def _similarity(report: GalleryReport, similarity: Float32Array) -> dict[str, Any]:
    place = {person_id: index for index, person_id in enumerate(report.embedded_ids)}
    return {
        "matrix": similarity,
        "person_ids": report.embedded_ids,
        "high_similarity_pairs": _pairs_above_threshold(report, similarity),
        "candidates": [_triple(pair, place) for pair in by_similarity(report.candidates)],
        "vetoed_pairs": [_triple(pair, place) for pair in by_similarity(report.vetoed_pairs)],
        "similarity_threshold": report.similarity_threshold,
        "timestamp": report.timestamp,
    }


def _pairs_above_threshold(report: GalleryReport, similarity: Float32Array) -> list[list[Any]]:
    """[id, id, similarity] of all pairs strictly above the threshold, vetoed or not, the most similar first."""
    rows, columns = np.triu_indices(len(similarity), k=1)
    values = similarity[rows, columns]  # (N (N - 1) / 2,)
    # Both sides as float32: a similarity that reads 0.8 in the file is not above a threshold of
    # 0.8.
    above = np.flatnonzero(values > np.float32(report.similarity_threshold))
    ids = report.embedded_ids
    order = above[np.argsort(-values[above], kind="stable")]
    return [[ids[rows[i]], ids[columns[i]], values[i]] for i in order]


def _triple(pair: Pair, place: dict[PersonId, int]) -> list[Any]:
    """[id, id, similarity], the ids in the order of `person_ids` as in `high_similarity_pairs`."""
    return [*sorted((pair.id_a, pair.id_b), key=place.__getitem__), np.float32(pair.similarity)]


def _npy(array: Float32Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _path_as_text(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"expected something that JSON knows, got {type(value).__name__}")
