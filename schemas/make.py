"""Write the JSON Schemas and the AsyncAPI document from the classes in `streamproc.events`.

    python schemas/make.py

A test compares the files with the result of this script.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import yaml
from pydantic import TypeAdapter

from streamproc.decisions import Decided, GalleryEvent
from streamproc.events import (
    AnimationReady,
    DuplicateCandidate,
    DuplicateGroup,
    PersonIdentity,
    TracksReady,
    TrackSuspect,
    VideoCancel,
    VideoProgress,
    VideoReady,
)
from streamproc.version import __version__


@dataclass(frozen=True)
class Topic:
    """A topic: the type of its events, their key, and whether streamproc sends or receives them."""

    event: Any
    key: str
    action: Literal["send", "receive"]
    summary: str


TOPICS: dict[str, Topic] = {
    "video-ready": Topic(
        event=VideoReady,
        key="video_id, or none",
        action="receive",
        summary="A video to process; only `video_uri` is required.",
    ),
    "tracks-ready": Topic(
        event=TracksReady,
        key="video_id",
        action="send",
        summary=(
            "The tracks that a worker found in a video which had none; the animator, which takes "
            "them, receives it as well."
        ),
    ),
    "video-cancel": Topic(
        event=VideoCancel,
        key="video_id",
        action="receive",
        summary="A video that is no longer wanted, whether it was started or not.",
    ),
    "person-embeddings": Topic(
        event=GalleryEvent,
        key="gallery_id",
        action="send",
        summary=(
            "One event for each person of a run, then `video-closed`; from the worker to the "
            "matcher, which also puts decisions here. Anybody may say here who is `forgotten`. "
            "Holds biometric vectors."
        ),
    ),
    "duplicate-candidates": Topic(
        event=DuplicateCandidate,
        key="gallery_id",
        action="send",
        summary="A pair that may be one person, or that is no longer thought to be.",
    ),
    "duplicate-groups": Topic(
        event=DuplicateGroup,
        key="gallery_id",
        action="send",
        summary="Persons who are proposed as one, or no longer are: all pairs decided together.",
    ),
    "track-suspects": Topic(
        event=TrackSuspect,
        key="gallery_id",
        action="send",
        summary="A track that seems to hold two people; a person event for each part follows.",
    ),
    "animation-ready": Topic(
        event=AnimationReady,
        key="video_id",
        action="send",
        summary="A person's animation is ready, or could not be made.",
    ),
    "video-progress": Topic(
        event=VideoProgress,
        key="video_id",
        action="send",
        summary="The state of a video; `done` when all its results were sent.",
    ),
    "review-decisions": Topic(
        event=Decided,
        key="gallery_id",
        action="receive",
        summary="What a reviewer decided; a line of `decisions.jsonl` is the same.",
    ),
    "identities": Topic(
        event=PersonIdentity,
        key="a JSON array: gallery_id, identity_id; the partition is that of gallery_id",
        action="send",
        summary=(
            "What reviewers decided of one person. Compacted; a record without a value takes back "
            "what was said under its key."
        ),
    ),
}

_DEAD_LETTERS = {
    "address": "dead-letters",
    "description": (
        "Records that could not be processed: key, value (cut at 512 KiB) and headers of the "
        "original, and the reason in the headers dlq_topic, dlq_partition, dlq_offset, "
        "dlq_timestamp_ms, dlq_error_code, dlq_error_text, dlq_attempts, dlq_service, "
        "dlq_version, dlq_value_size_bytes, dlq_value_sha256, dlq_value_truncated (UTF-8 text)."
    ),
    "messages": {"dead-letter": {"name": "dead-letter", "contentType": "application/octet-stream"}},
}
_HEADER_NAMES = (
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
_HEADERS = {
    "type": "object",
    "description": "CloudEvents 1.0, Kafka binary mode; optional on records that come in.",
    "properties": {name: {"type": "string"} for name in _HEADER_NAMES},
}


def schemas() -> dict[str, bytes]:
    """Return file name and content of each schema, version 1."""
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
    """Return the AsyncAPI 3 document: channels, messages and operations.

    It refers to the schemas in the files beside it.
    """
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for name, topic in TOPICS.items():
        channels[name] = {
            "address": name,
            "description": topic.summary,
            "messages": {name: _message(name, topic)},
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
            "description": (
                "What streamproc receives and sends on Kafka. Every address may have a prefix."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "127.0.0.1:9092", "protocol": "kafka"}},
        "channels": channels,
        "operations": operations,
        "components": {"schemas": {"headers": _HEADERS}},
    }
    return yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True).encode()


def _message(name: str, topic: Topic) -> dict[str, Any]:
    key = {"type": "string", "description": topic.key}
    return {
        "name": name,
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/headers"},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"./{name}.v1.json"},
        },
        "bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}},
    }


def files() -> dict[str, bytes]:
    """Return name and content of all files that this script writes."""
    return {**schemas(), "asyncapi.yaml": asyncapi()}


if __name__ == "__main__":
    for name, content in files().items():
        (Path(__file__).parent / name).write_bytes(content)
