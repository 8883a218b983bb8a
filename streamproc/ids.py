"""Ids that are hashes of what they stand for: the same again has the same id, on any machine."""

from __future__ import annotations

import hashlib

import orjson


def hash_of(*parts: object) -> str:
    """Return 32 hex digits that identify `parts` (JSON values), whatever process or machine computes them."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def video_id_of(video_uri: str) -> str:
    """The default `video_id`: the first 16 hex digits of the URI's sha256."""
    return hashlib.sha256(video_uri.encode()).hexdigest()[:16]


def person_key_of(video_id: str, person_id: int) -> str:
    """`video_id/person_id`, unique in a gallery."""
    return f"{video_id}/{person_id}"
