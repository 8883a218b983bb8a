"""Write the JSON Schemas and the AsyncAPI document from the classes in `streamproc.events`.

`python schemas/make.py`.

A test compares the files with what this makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml
from pydantic import TypeAdapter

from streamproc.events import (
    AnimationReady,
    DuplicateCandidate,
    GalleryExpired,
    PersonEmbedding,
    VideoCancel,
    VideoClosed,
    VideoProgress,
    VideoReady,
)
from streamproc.version import __version__


@dataclass(frozen=True)
class Topic:
    """One topic: what it carries, under which key, and what an application of streamproc's does with it."""

    event: Any
    key: str
    action: Literal["send", "receive"]
    summary: str


TOPICS: dict[str, Topic] = {
    "video-ready": Topic(
        VideoReady, "video_id, or none", "receive", "A video to look at; `video_uri` is enough."
    ),
    "video-cancel": Topic(
        VideoCancel, "video_id", "receive", "A video that nobody wants any more, begun or not."
    ),
    "person-embeddings": Topic(
        PersonEmbedding | VideoClosed | GalleryExpired,
        "gallery_id",
        "send",
        "One event a person of a run, then `video-closed`; from the worker to the matcher. Biometric vectors.",
    ),
    "duplicate-candidates": Topic(
        DuplicateCandidate,
        "gallery_id",
        "send",
        "A pair that may be one person, or that no longer is thought to be.",
    ),
    "animation-ready": Topic(
        AnimationReady, "video_id", "send", "A person's animation is there, or will not come."
    ),
    "video-progress": Topic(
        VideoProgress, "video_id", "send", "Where a video stands; `done` when all is out."
    ),
}
_DEAD_LETTERS = {
    "address": "dead-letters",
    "description": (
        "Records that were given up: key, value (cut at 512 KiB) and headers of the original, and the reason in the "
        "headers dlq_topic, dlq_partition, dlq_offset, dlq_timestamp_ms, dlq_error_code, dlq_error_text, dlq_attempts, "
        "dlq_service, dlq_version, dlq_value_size_bytes, dlq_value_sha256, dlq_value_truncated (UTF-8 text)."
    ),
    "messages": {"dead-letter": {"name": "dead-letter", "contentType": "application/octet-stream"}},
}
_HEADERS = {
    "type": "object",
    "description": "CloudEvents 1.0, Kafka binary mode; optional on what comes in.",
    "properties": {
        name: {"type": "string"}
        for name in (
            "ce_specversion",
            "ce_id",
            "ce_source",
            "ce_type",
            "ce_time",
            "ce_subject",
            "ce_dataschema",
            "content-type",
            "traceparent",
        )
    },
}


def schemas() -> dict[str, bytes]:
    """File name and content of each topic's schema, version 1."""
    made = {}
    for name, topic in TOPICS.items():
        schema = TypeAdapter(topic.event).json_schema()
        head = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"{name}, version 1",
        }
        made[f"{name}.v1.json"] = orjson.dumps(
            head | schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        )
    return made


def asyncapi() -> bytes:
    """The AsyncAPI 3 document: channels, messages and operations, with the schemas beside it by reference."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for name, topic in TOPICS.items():
        message = {
            "name": name,
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/headers"},
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": {"$ref": f"./{name}.v1.json"},
            },
            "bindings": {
                "kafka": {
                    "key": {"type": "string", "description": topic.key},
                    "bindingVersion": "0.5.0",
                }
            },
        }
        channels[name] = {
            "address": name,
            "description": topic.summary,
            "messages": {name: message},
        }
        operations[f"{topic.action}-{name}"] = {
            "action": topic.action,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }
    channels["dead-letters"] = _DEAD_LETTERS
    operations["send-dead-letters"] = {
        "action": "send",
        "channel": {"$ref": "#/channels/dead-letters"},
    }
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "streamproc",
            "version": __version__,
            "description": "What streamproc receives and sends on Kafka. Every address may have a prefix.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "127.0.0.1:9092", "protocol": "kafka"}},
        "channels": channels,
        "operations": operations,
        "components": {"schemas": {"headers": _HEADERS}},
    }
    return yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True).encode()


def files() -> dict[str, bytes]:
    """All files that this writes."""
    return {**schemas(), "asyncapi.yaml": asyncapi()}


if __name__ == "__main__":
    for name, content in files().items():
        (Path(__file__).parent / name).write_bytes(content)
