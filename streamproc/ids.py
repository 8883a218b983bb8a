"""Ids that are hashes of what they stand for: the same again has the same id, on any machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

CROPS_AND_VECTORS_VERSION = 4
"""Raise it with every change that gives other crops, vectors or trajectories for the same video,
tracks, options and weights: else the matcher takes a video that is processed again for a repeat,
and keeps what the earlier version made. (Version 1 was not part of a run's id.)"""


def hash_of(*parts: object) -> str:
    """Return 32 hex digits that identify `parts` (JSON values)."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def video_id_of(video_uri: str) -> str:
    """Return the default `video_id`: the first 16 hex digits of the URI's sha256.

    Bytes of a file's name that are no UTF-8 count as they are.
    """
    return hashlib.sha256(video_uri.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def person_key_of(video_id: str, person_id: int, part: int | None = None) -> str:
    """Return `video_id/person_id`, unique in a gallery; of a part of a track `video_id/7#2`."""
    own = f"{video_id}/{person_id}"
    return own if part is None else f"{own}#{part}"


def track_key_of(person_key: str) -> str:
    """Return the key of the whole track that a person key is of: the same, unless it is a part."""
    video_id, slash, name = person_key.rpartition("/")
    return f"{video_id}{slash}{name.partition('#')[0]}"


def run_id_of(
    *,
    video_id: str,
    video_sha256: str,
    tracks_identity: str,
    options: Sequence[object],
    weights_sha256: str,
) -> str:
    """Return the id of the run that takes these: equal runs give equal crops and vectors.

    `tracks_identity` is the sha256 of a track file, or what stands for a detector and tracker.
    """
    return hash_of(
        CROPS_AND_VECTORS_VERSION,
        video_id,
        video_sha256,
        tracks_identity,
        list(options),
        weights_sha256,
    )
