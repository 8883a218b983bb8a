"""Write the JSON Schemas from the classes in `streamproc.events`: `python schemas/make.py`. A test compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from streamproc.events import DuplicateCandidate, GalleryExpired, PersonEmbedding, VideoClosed

TOPICS: dict[str, Any] = {
    "duplicate-candidates": DuplicateCandidate,
    "person-embeddings": PersonEmbedding | VideoClosed | GalleryExpired,
}


def schemas() -> dict[str, bytes]:
    """File name and content of each topic's schema, version 1."""
    made = {}
    for topic, event in TOPICS.items():
        schema = TypeAdapter(event).json_schema()
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"{topic}, version 1"}
        made[f"{topic}.v1.json"] = orjson.dumps(head | schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return made


if __name__ == "__main__":
    for name, content in schemas().items():
        (Path(__file__).parent / name).write_bytes(content)
