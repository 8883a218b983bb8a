"""The artifact files of a report, as bytes by file name. Pure: reads no disk and writes none.

Names and keys are those of the batch pipeline before streamproc, so that programs that read its
files read these. Numbers are float32, with the fewest digits that give the same float32 back.
"""

from __future__ import annotations

import io
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from streamproc.files import readable
from streamproc.offline.report import keys_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamproc.offline.report import GalleryReport, PersonId
    from streamproc.types import Float32Array

ARTIFACT_NAMES = (
    "similarity_matrix.json",
    "similarity_matrix.npy",
    "embeddings.json",
    "embeddings.npy",
    "duplicate_candidates.jsonl",
    "duplicate_groups.jsonl",
    "track_suspects.jsonl",
    "person_embeddings.jsonl",
    "run.json",
)


def artifacts(report: GalleryReport) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each artifact that a report has.

    Without embeddings there are no files of similarity and none of embeddings.
    """
    if report.embeddings is not None and report.similarity is not None:
        embeddings = np.ascontiguousarray(report.embeddings, dtype=np.float32)
        similarity = np.ascontiguousarray(report.similarity, dtype=np.float32)
        yield "embeddings.npy", _npy(embeddings)
        yield "embeddings.json", to_json(_embeddings(report, embeddings))
        yield "similarity_matrix.npy", _npy(similarity)
        yield "similarity_matrix.json", to_json(_similarity(report, similarity))
        yield "person_embeddings.jsonl", _lines(report.person_events)
    candidates = (candidate.to_json() for candidate in report.candidates)
    yield "duplicate_candidates.jsonl", _lines(candidates)
    yield "duplicate_groups.jsonl", _lines(group.to_json() for group in report.groups)
    yield "track_suspects.jsonl", _lines(one.to_json() for one in report.suspects)
    yield "run.json", to_json(report.run, indent=True) + b"\n"


def to_json(value: object, *, indent: bool = False) -> bytes:
    """Serialise with numpy arrays and scalars as numbers, and paths as text.

    Names of files may hold bytes that are no UTF-8, which JSON cannot: see `files.readable`.
    """
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    if indent:
        options |= orjson.OPT_INDENT_2
    try:
        return orjson.dumps(value, default=_path_as_text, option=options)
    except TypeError:
        return orjson.dumps(_readable(value), default=_path_as_text, option=options)


def _readable(value: object) -> object:
    """Return the same with texts that can be encoded."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value


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
    candidates = [(keys_of(candidate), candidate.similarity) for candidate in report.candidates]
    vetoed = [(pair.person_keys, pair.similarity) for pair in report.vetoed_pairs]
    return {
        "matrix": similarity,
        "person_ids": report.embedded_ids,
        "high_similarity_pairs": _pairs_above_threshold(report, similarity),
        "candidates": _triples(report, sorted(candidates)),
        "vetoed_pairs": _triples(report, vetoed),
        "similarity_threshold": report.similarity_threshold,
        "timestamp": report.timestamp,
    }


def _pairs_above_threshold(report: GalleryReport, similarity: Float32Array) -> list[list[Any]]:
    """Return [id, id, similarity] of all pairs strictly above the threshold, vetoed or not."""
    rows, columns = np.triu_indices(len(similarity), k=1)
    values = similarity[rows, columns]  # (N (N - 1) / 2,)
    # Both sides are float32, so that a similarity that reads 0.8 in the file is not above 0.8.
    above = np.flatnonzero(values > np.float32(report.similarity_threshold))
    most_similar_first = above[np.argsort(-values[above], kind="stable")]
    ids = report.embedded_ids
    return [[ids[rows[i]], ids[columns[i]], values[i]] for i in most_similar_first]


def _triples(
    report: GalleryReport, pairs: Iterable[tuple[tuple[str, str], float]]
) -> list[list[Any]]:
    """Return [id, id, similarity] of pairs of person keys, the most similar first.

    The ids are in the order of the matrix, as in `high_similarity_pairs`. Pairs of equal similarity
    keep their order.
    """
    id_of = {person.person_key: person.id for person in report.persons}
    position = {person_id: index for index, person_id in enumerate(report.embedded_ids)}
    triples = []
    for keys, similarity in sorted(pairs, key=lambda pair: -pair[1]):
        ids: list[PersonId] = sorted((id_of[key] for key in keys), key=position.__getitem__)
        triples.append([*ids, np.float32(similarity)])
    return triples


def _npy(array: Float32Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _path_as_text(value: object) -> str:
    if isinstance(value, PurePath):
        return readable(value)
    raise TypeError(f"expected something that JSON knows, got {type(value).__name__}")
