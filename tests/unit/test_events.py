"""Events: classes, schemas and examples agree, and a wrong event is refused in one line."""

from __future__ import annotations

import base64
import hashlib
import re
import runpy
import time
import tracemalloc
from pathlib import Path
from typing import get_args

import jsonschema
import numpy as np
import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from persons import closed, person, unit_vector

from streamproc.decisions import AnyDecision
from streamproc.errors import EventError
from streamproc.events import (
    AnimationReady,
    DuplicateCandidate,
    DuplicateGroup,
    Forgotten,
    GalleryExpired,
    PersonEmbedding,
    PersonIdentity,
    TracksReady,
    TrackSuspect,
    Trajectory,
    Vector,
    VideoCancel,
    VideoClosed,
    VideoProgress,
    VideoReady,
    check_submitted_at,
    timestamp_of,
)
from streamproc.gallery.announcements import candidate_person
from streamproc.ids import track_key_of, video_id_of
from streamproc.settings import TopicsSettings

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
CLASSES = {
    kind.topic: kind
    for kind in (
        AnimationReady,
        DuplicateCandidate,
        DuplicateGroup,
        PersonIdentity,
        TrackSuspect,
        TracksReady,
        VideoCancel,
        VideoProgress,
        VideoReady,
    )
}
KINDS = {
    "person": PersonEmbedding,
    "video-closed": VideoClosed,
    "gallery-expired": GalleryExpired,
    "forgotten": Forgotten,
} | {kind.model_fields["kind"].default: kind for kind in get_args(AnyDecision)}


def test_the_schema_files_are_what_the_classes_say() -> None:
    """The files in `schemas` are byte for byte what `schemas/make.py` writes."""
    made = runpy.run_path(str(SCHEMAS / "make.py"))["files"]()
    kept = [*SCHEMAS.glob("*.json"), *SCHEMAS.glob("*.yaml")]
    assert {path.name: path.read_bytes() for path in kept} == made


def test_the_asyncapi_document_names_every_topic_and_its_references_lead_somewhere() -> None:
    """The AsyncAPI document has every topic, and each of its references leads somewhere."""
    document = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
    topics = {name.replace("_", "-") for name in TopicsSettings.model_fields}
    assert set(document["channels"]) == topics
    assert {
        operation["channel"]["$ref"].rpartition("/")[2]
        for operation in document["operations"].values()
    } == topics
    text = orjson.dumps(document).decode()
    for reference in re.findall(r'"\$ref":"([^"]+)"', text):
        if reference.startswith("./"):
            assert (SCHEMAS / reference).is_file()
        else:
            node = document
            for part in reference.removeprefix("#/").split("/"):
                node = node[part]


@pytest.mark.parametrize(
    "path", sorted(SCHEMAS.glob("examples/*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_example_validates_and_is_read_back_equal(path) -> None:
    """Each example fits its schema and comes back from its class unchanged, id included."""
    content = orjson.loads(path.read_bytes())
    schema = orjson.loads((SCHEMAS / f"{path.parent.name}.v1.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(content)
    event = (KINDS.get(content.get("kind")) or CLASSES[path.parent.name]).from_json(
        path.read_bytes()
    )
    assert orjson.loads(event.to_json()) == content
    assert type(event).make(**dict(event)).event_id == event.event_id


def test_every_topic_has_examples() -> None:
    """Each topic with a schema has a folder of examples that is not empty."""
    topics = {path.name.removesuffix(".v1.json") for path in SCHEMAS.glob("*.v1.json")}
    assert {folder.name for folder in SCHEMAS.glob("examples/*") if any(folder.iterdir())} == topics


def test_ids_say_what_an_event_says_and_not_when() -> None:
    """Event ids are equal for equal content and differ for other content."""
    assert person(1, [1, 0]).event_id == person(1, [1, 0]).event_id
    assert person(1, [1, 0]).event_id != person(1, [0, 1]).event_id
    assert closed([1]).event_id != closed([1, 2]).event_id
    assert video_id_of("video.mp4") == hashlib.sha256(b"video.mp4").hexdigest()[:16]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"vector": {"data": "AAAA", "dim": 1}}, "expected base64 of whole float32 numbers"),
        ({"vector": {"data": "AACAPw==", "dim": 2}}, "expected 2 numbers, got 1"),
        ({"vector": {"data": "AADAfw==", "dim": 1}}, "expected finite numbers"),
        ({"person_key": "w/1"}, "person_key: expected 'v/1'"),
        ({"submitted_at": "2026-11-24 12:00"}, "time zone"),
        ({"gallery_id": ""}, "gallery_id"),
        ({"first_seen_seconds": None}, "first_seen_seconds"),
    ],
)
def test_an_event_that_breaks_the_schema_is_refused_by_field(change, text) -> None:
    """A wrong field raises an EventError of one line that names it."""
    content = orjson.loads(person(1, [1, 0]).to_json()) | change
    with pytest.raises(EventError, match=text) as caught:
        PersonEmbedding.from_json(orjson.dumps(content))
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_ignored() -> None:
    """A field that a newer producer adds changes nothing."""
    event = person(1, [1, 0])
    assert (
        PersonEmbedding.from_json(orjson.dumps(orjson.loads(event.to_json()) | {"newer": 1}))
        == event
    )


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_one_line(data) -> None:
    """Random bytes raise an EventError of one line."""
    with pytest.raises(EventError) as caught:
        PersonEmbedding.from_json(data)
    assert "\n" not in str(caught.value)


def test_vectors_are_equal_by_their_numbers() -> None:
    """Vectors are equal and hash alike by their numbers, unpacked or not."""
    one, same, other = Vector.of(np.ones(4)), Vector.of(np.ones(4)), Vector.of(np.zeros(4))
    one.numpy()  # unpacked by now
    assert one == same != other
    assert len({one, same, other}) == 2


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40))
def test_a_vector_comes_back_bit_for_bit(values) -> None:
    """Packing float32 numbers and unpacking them gives the same numbers."""
    np.testing.assert_array_equal(
        Vector.of(np.array(values, np.float32)).numpy(), np.array(values, np.float32)
    )


def test_a_person_survives_the_wire() -> None:
    """A person event read from its own JSON is equal to the first."""
    event = person(3, unit_vector(np.arange(1, 513)), seen_with=[1, 2])
    assert PersonEmbedding.from_json(event.to_json()) == event


def trajectory(**changed) -> dict:
    """A trajectory of three boxes as JSON values."""
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = Trajectory.of([3, 4, 9], boxes, width_px=640, height_px=480, frames_per_second=25)
    return made.model_dump(mode="json") | changed


def test_a_trajectory_survives_the_wire() -> None:
    """The boxes come back bit for bit, with the frames that they are of."""
    event = person(1, [1, 0]).model_copy(update={"trajectory": Trajectory(**trajectory())})
    found = PersonEmbedding.from_json(event.to_json()).trajectory
    assert found == event.trajectory
    np.testing.assert_array_equal(found.numpy(), np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"frame_indices": [3, 9]}, "expected base64 of 2 x 4 float32 numbers"),
        ({"frame_indices": [3, 3, 9]}, "frame indices that ascend"),
        ({"frame_indices": list(range(65))}, "at most 64"),
        ({"data": "AAAA"}, "expected base64 of 3 x 4"),
        ({"data": base64.b64encode(np.full(12, np.nan, "<f4")).decode()}, "finite numbers"),
        ({"frames_per_second": 0}, "frames_per_second"),
        ({"width_px": 0}, "width_px"),
    ],
)
def test_a_trajectory_that_does_not_fit_is_refused(changed, text) -> None:
    """A wrong number of boxes, an order, a number that is none: one line says what is wrong."""
    content = orjson.loads(person(1, [1, 0]).to_json()) | {"trajectory": trajectory(**changed)}
    with pytest.raises(EventError, match=text):
        PersonEmbedding.from_json(orjson.dumps(content))


def test_a_time_of_the_far_future_is_refused() -> None:
    """It would keep a video as it is for ever; a clock that is an hour ahead is no reason."""
    check_submitted_at(timestamp_of((time.time() + 3600) * 1000))
    for text in ("9999-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00"):
        with pytest.raises(EventError, match="tomorrow"):
            check_submitted_at(text)


@pytest.mark.parametrize(("given", "kept"), [("person", "person"), (1, "1"), ("1", "1")])
def test_the_class_of_tracks_goes_over_the_wire(given, kept) -> None:
    """A class is a number or a name; the event says it under the name `class`."""
    data = orjson.dumps({"video_uri": "a.mp4", "tracks": {"uri": "t.json", "class": given}})
    event = VideoReady.from_json(data)
    assert event.tracks.object_class == kept
    assert orjson.loads(event.to_json())["tracks"]["class"] == kept
    assert VideoReady.from_json(event.to_json()) == event


def test_tracks_without_a_class_say_nothing_of_it() -> None:
    """So the ids of events stay as they were before there was one."""
    event = VideoReady.make(video_uri="a.mp4", tracks={"uri": "t.json"})
    assert "class" not in str(orjson.loads(event.to_json())["tracks"])


def test_the_key_of_a_part_says_which_part() -> None:
    """A key without its part is refused; the track's key is that of the whole."""
    part = person(7, [1, 0], part=2, seen_with_keys=["v/1", "v/7#1"])
    assert part.person_key == "v/7#2"
    assert part.track_key == track_key_of("v/7#2") == track_key_of("v/7") == "v/7"
    assert PersonEmbedding.from_json(part.to_json()) == part
    wrong = part.model_dump(mode="json") | {"person_key": "v/7"}
    with pytest.raises(EventError, match="expected 'v/7#2'"):
        PersonEmbedding.from_json(orjson.dumps(wrong))


def test_what_a_person_of_a_candidate_says_takes_little_memory() -> None:
    """Two persons of each pair keep their JSON, so it must not hold the room it was made in."""
    described = [candidate_person(person(number, unit_vector([1, 0]))) for number in range(200)]
    tracemalloc.start()
    try:
        said = [one.said for one in described]
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / len(said) < 2048, "orjson's own bytes take 4 KiB"
