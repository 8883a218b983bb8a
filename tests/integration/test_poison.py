"""Records of forty bad kinds beside good videos: every good one is done, every bad one ends."""

from __future__ import annotations

import json
import os
import random

import psutil
import pytest
from processes import PATIENCE_SECONDS

from streamproc.ids import video_id_of

RECORDS = int(os.environ.get("STREAMPROC_TEST_POISON_RECORDS", "1000"))
GOOD = 20
PERSON = "person-embeddings"
TRACKS = {"uri": "a.persons.npz"}


def ready(**fields):
    """The value of an announcement."""
    return json.dumps({"video_uri": "a.mp4", "tracks": TRACKS, **fields}).encode()


def person(**fields):
    """The value of a person's event, to which something is done."""
    body = {
        "kind": "person",
        "gallery_id": "bad",
        "video_id": "bad",
        "run_id": "r",
        "submitted_at": "2026-11-24T12:00:00Z",
        "person_id": 1,
        "person_key": "bad/1",
        "vector": {"data": "AACAPwAAAAA=", "dim": 2},
        "model": {"name": "m", "weights_sha256": "a" * 64},
        "crops": [],
        "crop_count": 1,
        "first_frame_index": 0,
        "last_frame_index": 1,
        "first_seen_seconds": 0,
        "last_seen_seconds": 1,
        "frames_tracked": 2,
    }
    return json.dumps(body | fields).encode()


def kinds(media):
    """Topic, value and headers of each kind, made of bad files below the media root."""
    (media / "text.mp4").write_text("not a video")
    (media / "empty.mp4").touch()
    (media / "cut.mp4").write_bytes((media / "a.mp4").read_bytes()[:3000])
    (media / "bad.npz").write_bytes(b"PK\x03\x04" + b"\0" * 500)
    (media / "words.mot.txt").write_text("these are no tracks\n")
    (media / "folder.mp4").mkdir(exist_ok=True)
    deep = b"[" * 5000 + b"]" * 5000
    video = [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"5",
        deep,
        b'{"video_uri": %b}' % deep,
        ready(video_uri=5),
        ready(video_uri=""),
        ready(video_uri="a\u0000b"),
        ready(video_uri="x" * 5000),
        ready(video_uri="missing.mp4"),
        ready(video_uri="../../etc/hostname"),
        ready(video_uri="gopher://host/a.mp4"),
        ready(video_uri="http://127.0.0.1:9/x.mp4"),  # allowed, and nobody is there
        ready(video_uri="http://not-allowed.example/x.mp4"),
        ready(video_uri="text.mp4"),
        ready(video_uri="empty.mp4"),
        ready(video_uri="cut.mp4"),
        ready(video_uri="folder.mp4"),
        ready(tracks={"uri": "folder.mp4"}),
        ready(tracks={"uri": "bad.npz"}),
        ready(tracks={"uri": "words.mot.txt"}),
        ready(tracks={"uri": "b.mp4"}),
        ready(video_sha256="0" * 64),
        ready(video_size_bytes=1),
        ready(options={"crops_per_person": 10**30}),
        ready(options={"time_limit_seconds": 1e-9}),
        ready(schema_version=2),
        ready(submitted_at="no time"),
        ready(labels={"a": 5}),
    ]
    matched = [
        b"",
        b"{}",
        deep,
        person(vector={"data": "x", "dim": 2}),
        person(vector={"data": "AADAfwAAwH8=", "dim": 2}),
        person(person_key="other/1"),
        person(first_seen_seconds=1e15, last_seen_seconds=-1e15),
        person(person_id=2**80),
    ]
    return [("video-ready", value) for value in video] + [(PERSON, value) for value in matched]


@pytest.mark.long
def test_whatever_comes_beside_them_all_good_videos_are_done(stream):
    """Each good video is `done`, nothing is left over, and no service grows or ends."""
    stream = stream(remote__allowed_hosts="127.0.0.1:9", remote__attempts=1, jobs__fault_attempts=3)
    services = [stream.start(name) for name in ("worker", "matcher", "animator")]
    bad = kinds(stream.media)
    assert len(bad) == 40
    chance = random.Random(RECORDS)
    records = [bad[number % len(bad)] for number in range(RECORDS)]
    good = {}
    for number in range(GOOD):
        uri = f"good{number}.mp4"
        (stream.media / uri).symlink_to("a.mp4")
        good[video_id_of(uri)] = ready(video_uri=uri, gallery_id=f"g{number % 3}")
    chance.shuffle(records)
    by_topic = {"video-ready": list(good.values()), PERSON: []}
    for topic, value in records:
        by_topic[topic].append(value)
    chance.shuffle(by_topic["video-ready"])

    def is_done() -> bool:
        last = {event["video_id"]: event["state"] for event in stream.events("video-progress")}
        return all(last.get(video_id) == "done" for video_id in good)

    for topic, values in by_topic.items():
        pairs = [(b"k%d" % chance.randrange(50), value) for value in values]
        stream.send(topic, *pairs, headers=[("h", b"\xff")])
    seconds = max(10 * PATIENCE_SECONDS, RECORDS / 2)
    stream.eventually(is_done, "all good ones done", seconds=seconds)
    before = [psutil.Process(one.process.pid).memory_info().rss for one in services]
    for name, topic in (
        ("worker", "video-ready"),
        ("animator", "video-ready"),
        ("matcher", PERSON),
    ):
        stream.eventually(lambda n=name, t=topic: stream.lag(n, t) == 0, "lag 0", seconds=seconds)
    after = [psutil.Process(one.process.pid).memory_info().rss for one in services]
    growth = [(end - start) / 2**20 for start, end in zip(before, after, strict=True)]
    assert max(growth) <= 50, growth
    assert all(service.is_ready for service in services)
    ended = {"failed", "done", "cancelled"}
    last = {event["video_id"]: event["state"] for event in stream.events("video-progress")}
    assert set(last.values()) <= ended, last
