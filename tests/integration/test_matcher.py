"""The matcher as a process, on a real broker: what it says, crashes, rebalances, bad events, the machine's faults."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from persons import closed, person, unit_vector
from services import eventually

from streamproc.events import GalleryExpired
from streamproc.gallery import Gallery, apply

TOPIC = "person-embeddings"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

AT_POINT = """
import asyncio, os, pathlib, signal, sys
from streamproc.errors import MachineError
from streamproc.kafka import publisher
from streamproc.services.matcher import faust_table, matcher

def fault(times, what):
    marks = pathlib.Path(os.environ["MARKS"])
    with marks.open("a") as file:
        file.write("x")
    if marks.stat().st_size == times:
        what()

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def raises(error):
    def work():
        raise error
    return work

real_publish, real_begin, real_keep = publisher.Publisher.publish_all, publisher.Publisher.begin, faust_table.FaustTable.keep
real_decide = matcher.decide
POINT
from streamproc.cli import main
sys.argv = ["streamproc", sys.argv[1]]
main()
"""

POINTS = {
    "published, rows not sent": """
async def publish_all(self, events, *, trace=None):
    await real_publish(self, events, trace=trace)
    fault(12, kill)
publisher.Publisher.publish_all = publish_all
""",
    "in the changelog, not in the local store": """
def keep(self, partition, entries, offset):
    fault(40, kill)
    real_keep(self, partition, entries, offset)
faust_table.FaustTable.keep = keep
""",
    "in the local store, not acknowledged": """
def keep(self, partition, entries, offset):
    real_keep(self, partition, entries, offset)
    fault(40, kill)
faust_table.FaustTable.keep = keep
""",
    "the broker refuses": """
async def publish_all(self, events, *, trace=None):
    fault(12, raises(MachineError("refused")))
    await real_publish(self, events, trace=trace)
publisher.Publisher.publish_all = publish_all
""",
    "the disk is full": """
def keep(self, partition, entries, offset):
    fault(40, raises(OSError(28, "No space left on device")))
    real_keep(self, partition, entries, offset)
faust_table.FaustTable.keep = keep
""",
    "a bug": """
def decide(held, event, **options):
    fault(30, raises(RuntimeError("a bug")))
    return real_decide(held, event, **options)
matcher.decide = decide
""",
}


def video(gallery_id, video_id, *, seed, persons=20, minute=0, run="r1", looks=6):
    """The events of one run: persons of a few looks, so that there are candidates, and the closing."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(looks, 64))
    events = [
        person(
            i,
            unit_vector(centres[rng.integers(looks)] + rng.normal(0, 0.45, 64)),
            video_id=video_id,
            gallery_id=gallery_id,
            minute=minute,
            run=run,
            seen_with=[i - 1] if i % 5 == 0 else (),
        )
        for i in range(1, persons + 1)
    ]
    end = closed(range(1, persons + 1), video_id=video_id, minute=minute, run=run)
    return [*events, type(end).make(**{**dict(end), "gallery_id": gallery_id})]


def load(galleries=3):
    """Three galleries of two videos each; the second video comes again with another run that finds fewer persons."""
    events = []
    for g in range(galleries):
        events += video(f"g{g}", "a", seed=g)
        events += video(f"g{g}", "b", seed=10 + g)
        events += video(f"g{g}", "b", seed=20 + g, run="r2", minute=5, persons=15)
    return events


def said_by_the_core(events) -> tuple[set[str], dict[str, Gallery]]:
    galleries, said = {}, set()
    for event in events:
        gallery = galleries.setdefault(event.gallery_id, Gallery(event.gallery_id))
        outcome = apply(
            gallery, event, similarity_threshold=0.70, occurred_at="2026-11-24T12:00:00Z"
        )
        gallery.write(outcome.writes)
        said |= {each.event_id for each in outcome.events}
    return said, galleries


def put(stream, *events, **options) -> None:
    stream.send(TOPIC, *[(event.key.encode(), event.to_json()) for event in events], **options)


def said(stream) -> list[str]:
    return [
        event["event_id"]
        for topic in ("duplicate-candidates", "video-progress")
        for event in stream.events(topic)
    ]


def settled(stream) -> None:
    eventually(lambda: stream.lag("matcher", TOPIC) == 0, "lag 0")


def get(url, accept="application/json"):
    with urllib.request.urlopen(
        urllib.request.Request(url, headers={"Accept": accept}), timeout=10
    ) as response:
        return response.read() if accept != "application/json" else json.load(response)


def status_of(url) -> tuple[int, dict[str, object]]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url)
    with caught.value as error:
        return error.code, json.load(error)


def test_the_stream_says_what_the_core_says_and_shows_the_matrix(stream):
    stream = stream()
    matcher = stream.start("matcher")
    events = load()
    expected, galleries = said_by_the_core(events)
    put(stream, *events, headers=[("traceparent", TRACE)])
    settled(stream)

    assert sorted(said(stream)) == sorted(expected)
    assert stream.states("a") == ["done"] * 3
    record = stream.records("duplicate-candidates")[0]
    assert dict(record.headers)["traceparent"] == TRACE
    assert record.key.decode() == json.loads(record.value)["gallery_id"]

    answer = get(f"{matcher.url}/galleries/g1/similarity")
    keys = sorted(galleries["g1"].rows)
    assert answer["person_keys"] == keys
    np.testing.assert_allclose(answer["similarity"], galleries["g1"].matrix(keys), atol=1e-6)
    pairs = {tuple(pair["person_keys"]): pair["similarity"] for pair in answer["candidates"]}
    assert pairs == {(a, b): entry.similarity for a, b, entry in galleries["g1"].pairs()}
    npy = np.load(io.BytesIO(get(f"{matcher.url}/galleries/g1/similarity", "application/x-npy")))
    np.testing.assert_allclose(npy, answer["similarity"], atol=1e-6)
    assert "similarity" not in get(f"{matcher.url}/galleries/g1/similarity?matrix=no")
    assert {
        g["gallery_id"]: g["persons"] for g in get(f"{matcher.url}/galleries")["galleries"]
    } == {name: len(gallery.rows) for name, gallery in galleries.items()}
    assert status_of(f"{matcher.url}/galleries/no%2Fsuch/similarity") == (
        404,
        {"error": "gallery 'no/such': nobody was seen in it yet, or it has expired"},
    )
    metrics = matcher.metrics()
    assert metrics['streamproc_events_total{kind="person"}'] == sum(
        event.kind == "person" for event in events
    )
    assert metrics["streamproc_rows"] == sum(len(gallery.rows) for gallery in galleries.values())
    assert metrics["streamproc_lag"] == 0
    assert metrics['streamproc_candidates_total{state="withdrawn"}'] > 0
    assert matcher.stop() == 0


@pytest.mark.parametrize("point", POINTS)
def test_nothing_is_lost_wherever_it_dies(stream, tmp_path, point):
    """Afterwards another matcher, with no local copy of the rows, knows all of them from Kafka."""
    stream = stream(kafka__session_timeout_seconds=2)
    environment = stream.environment
    stream.environment = lambda **more: environment(**more) | {"MARKS": str(tmp_path / "marks")}
    first = stream.start("matcher", code=AT_POINT.replace("POINT", POINTS[point]))
    events = load()
    expected, galleries = said_by_the_core(events)
    put(stream, *events)
    code = first.process.wait(30)
    assert code == (1 if "raises" in POINTS[point] else -9)
    assert stream.lag("matcher", TOPIC) > 0

    second = stream.start("matcher")
    settled(stream)
    assert set(said(stream)) == expected
    second.stop()
    third = stream.start("matcher", matcher__state_folder=str(tmp_path / "elsewhere"))
    for name, gallery in galleries.items():
        answer = get(f"{third.url}/galleries/{name}/similarity")
        assert answer["person_keys"] == sorted(gallery.rows)
        assert {tuple(pair["person_keys"]) for pair in answer["candidates"]} == {
            (a, b) for a, b, _ in gallery.pairs()
        }


def test_matchers_join_and_leave_under_load_and_send_each_other_their_readers(stream):
    stream = stream(topics__person_embeddings__partitions=8)
    first = stream.start("matcher")
    events = load(galleries=12)
    expected, galleries = said_by_the_core(events)
    parts = [
        events[i : i + len(events) // 4 + 1] for i in range(0, len(events), len(events) // 4 + 1)
    ]
    put(stream, *parts[0])
    second = stream.start("matcher", ready=False)
    put(stream, *parts[1])
    second.ready()
    eventually(lambda: first.is_ready and second.is_ready, "both ready")
    put(stream, *parts[2])
    settled(stream)
    shares = [get(f"{matcher.url}/galleries")["partitions"] for matcher in (first, second)]
    assert sorted(shares[0] + shares[1]) == list(range(8))
    assert all(shares)
    for name in ("g0", "g1", "g2", "g3", "g4"):
        answers = [get(f"{matcher.url}/galleries/{name}/similarity") for matcher in (first, second)]
        assert answers[0] == answers[1]
    assert second.stop() == 0
    put(stream, *parts[3])
    settled(stream)
    assert set(said(stream)) == expected
    for name, gallery in galleries.items():
        answer = eventually(
            lambda name=name: first.is_ready and get(f"{first.url}/galleries/{name}/similarity"),
            name,
        )
        assert answer["person_keys"] == sorted(gallery.rows)


FORGETFUL = """
import os, pathlib, random, sys
from mode.utils.queues import FlowControlQueue
from streamproc.services.matcher import faust_table

chance, put = random.Random(1), FlowControlQueue.put_nowait_enhanced
forgotten, last, times = pathlib.Path(os.environ["MARKS"]), os.environ["LAST"].encode(), 3

def forget(self, value, **options):
    global times
    is_last = last in value.message.value and times > 0
    if value.message.topic.endswith("person-embeddings") and (is_last or chance.random() < float(os.environ["CHANCE"])):
        times -= is_last
        with forgotten.open("a") as file:
            file.write("x")
        return False
    return put(self, value, **options)

FlowControlQueue.put_nowait_enhanced = forget
faust_table._WATCH_SECONDS = 0.5
from streamproc.cli import main
sys.argv = ["streamproc", sys.argv[1]]
main()
"""


@pytest.mark.parametrize(("chance", "last"), [("0.1", "none"), ("0", "the last, three times")])
def test_events_that_faust_forgets_are_taken_in_their_turn(stream, tmp_path, chance, last):
    """As it forgets them when it takes up fetching after a recovery: some of those that it has read.

    Of the last one no later event tells.
    """
    stream, events = stream(), load()
    environment = stream.environment
    last = events[-1].event_id if last != "none" else last
    forgetful = {"MARKS": str(tmp_path / "marks"), "CHANCE": chance, "LAST": last}
    stream.environment = lambda **more: environment(**more) | forgetful
    matcher = stream.start("matcher", code=FORGETFUL)
    expected, galleries = said_by_the_core(events)
    put(stream, *events)
    settled(stream)
    assert (tmp_path / "marks").stat().st_size > 0
    assert sorted(said(stream)) == sorted(expected)
    for name, gallery in galleries.items():
        assert get(f"{matcher.url}/galleries/{name}/similarity")["person_keys"] == sorted(
            gallery.rows
        )


WATCHFUL = """
import sys
from streamproc.services.matcher import faust_table
faust_table._WATCH_SECONDS = 0.2
from streamproc.cli import main
sys.argv = ["streamproc", sys.argv[1]]
main()
"""


def test_offsets_that_are_no_messages_hold_nothing_up(stream):
    """A producer with transactions leaves marks in the log that no consumer is given."""
    stream = stream()
    matcher = stream.start("matcher", code=WATCHFUL)
    events = load(galleries=1)
    expected, _ = said_by_the_core(events)
    for i in range(0, len(events), 20):
        stream.send_in_transaction(
            TOPIC, *[(event.key.encode(), event.to_json()) for event in events[i : i + 20]]
        )
    eventually(lambda: sorted(said(stream)) == sorted(expected), "all said")
    time.sleep(5)  # the mark at the very end is no reason to give up
    assert matcher.is_ready
    assert matcher.stop() == 0


def test_bad_events_are_given_up_with_the_reason_and_harm_no_other(stream):
    limit = 6 * 1024 * 1024
    stream = stream(kafka__max_event_bytes=limit)
    matcher = stream.start("matcher")
    good = video("g0", "a", seed=1)
    expected, _ = said_by_the_core(good)
    template = json.loads(good[0].to_json()) | {"person_id": 77, "person_key": "a/77"}
    nan = dict(template["vector"], data="AADAfw" + template["vector"]["data"][6:])
    bad = {
        "Invalid JSON": b"{broken",
        "schema_version": json.dumps(template | {"schema_version": 2}).encode(),
        "got 32": person(78, np.ones(32), video_id="a", gallery_id="g0").to_json(),
        "expected finite numbers": json.dumps(template | {"vector": nan}).encode(),
        "expected a unit vector": person(
            79, np.full(64, 0.5), video_id="a", gallery_id="g0", normalise=False
        ).to_json(),
        "person_id": json.dumps(template | {"person_id": 10**30}).encode(),
        "kind": b'{"kind": "other"}' + b" " * (5 * 1024 * 1024),
        "gallery_id": json.dumps(template | {"gallery_id": None}).encode(),
    }
    put(stream, *good[:10])
    stream.send(TOPIC, *[(b"g0", value) for value in bad.values()], (b"g0", None))
    put(stream, *good[10:15])
    home = stream.records(TOPIC)[0].partition
    stream.send(
        TOPIC, *[(b"foreign", event.to_json()) for event in good[15:]], partition=(home + 1) % 4
    )
    settled(stream)
    eventually(lambda: stream.states("a") == ["done"], "the strays' closing")
    assert sorted(said(stream)) == sorted(expected)
    dead = stream.dead()
    assert len(dead) == len(bad) + 1
    assert all(any(text in letter["error_text"] for letter in dead) for text in bad)
    assert {letter["error_code"] for letter in dead} == {"bad-event"}
    assert [
        letter["value_size_bytes"] for letter in dead if letter["value_truncated"] == "true"
    ] == ["5242897"]
    metrics = matcher.metrics()
    assert metrics["streamproc_strays_total"] == len(good) - 15
    assert metrics['streamproc_dead_letters_total{code="bad-event"}'] == len(dead)


def test_a_gallery_expires_after_its_last_event_and_no_other_with_it(stream, tmp_path):
    stream = stream(matcher__gallery_expiry_hours=6 / 3600)
    matcher = stream.start("matcher")
    put(stream, *video("old", "a", seed=1))
    end = time.monotonic() + 30
    seed = 0
    while (
        "old" in (names := {g["gallery_id"] for g in get(f"{matcher.url}/galleries")["galleries"]})
        or not names
    ):
        assert time.monotonic() < end
        seed += 1
        put(stream, *video("kept", f"v{seed}", seed=seed, persons=1))
    assert names == {"kept"}
    assert GalleryExpired.from_json(
        next(
            r.value
            for r in stream.records(TOPIC)
            if json.loads(r.value)["kind"] == "gallery-expired"
        )
    )
    settled(stream)
    matcher.stop()
    other = stream.start(
        "matcher",
        matcher__state_folder=str(tmp_path / "elsewhere"),
        matcher__gallery_expiry_hours=24,
    )
    assert {g["gallery_id"] for g in get(f"{other.url}/galleries")["galleries"]} == {"kept"}
