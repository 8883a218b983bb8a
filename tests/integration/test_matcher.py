"""The matcher as a process, on a real broker.

What it says, crashes, rebalances, bad events, and faults of the machine.
"""

from __future__ import annotations

import io
import itertools
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from persons import closed, person, unit_vector
from services import get

from streamproc.decisions import PairDecision
from streamproc.events import GalleryExpired
from streamproc.gallery import Gallery, apply

TOPIC = "person-embeddings"
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

KILLED = -9
FAILED = 1
FAULTS = {
    "killed-after-publishing": KILLED,
    "killed-before-the-local-store": KILLED,
    "killed-before-acknowledging": KILLED,
    "refused-by-the-broker": FAILED,
    "full-disk": FAILED,
}
"""The faults of tests/scripts/matcher_with_a_fault.py, and the exit code after each."""
LONG = ("killed-before-the-local-store", "refused-by-the-broker")
"""Those of them that run with the long tests."""


def video(gallery_id, video_id, *, seed, persons=20, minute=0, run="r1", looks=6):
    """The events of one run: persons of a few looks, so that there are candidates, and a closing.

    `looks` is how many different ones there are.
    """
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(looks, 64))
    events = []
    for number in range(1, persons + 1):
        vector = centres[rng.integers(looks)] + rng.normal(0, 0.45, 64)
        events.append(
            person(
                number,
                unit_vector(vector),
                video_id=video_id,
                gallery_id=gallery_id,
                minute=minute,
                run=run,
                seen_with=[number - 1] if number % 5 == 0 else (),
            )
        )
    end = closed(range(1, persons + 1), video_id=video_id, minute=minute, run=run)
    return [*events, type(end).make(**{**dict(end), "gallery_id": gallery_id})]


def decided(gallery_id, a, b, verdict, second=0, **more):
    """A decision on two persons, by their keys."""
    return PairDecision.make(
        gallery_id=gallery_id,
        decided_at=f"2026-11-24T12:00:{second:02d}Z",
        person_keys=(a, b),
        verdict=verdict,
        **more,
    )


def load(galleries=3):
    """Galleries of two videos each; the second comes again with a run that finds fewer persons.

    In between some pairs of the first are decided, and one with the second: that is lost, as
    nothing says where these persons were.
    """
    events = []
    for number in range(galleries):
        name = f"g{number}"
        events += video(name, "a", seed=number)
        events += [
            decided(name, f"a/{one}", f"a/{other}", verdict, one)
            for one, other, verdict in [
                (1, 2, "same"),
                (2, 3, "different"),
                (4, 5, "same"),
                (6, 7, "different"),
            ]
        ]
        events += video(name, "b", seed=10 + number)
        events.append(decided(name, "a/8", "b/8", "same", 9))
        events += video(name, "b", seed=20 + number, run="r2", minute=5, persons=15)
    return events


def said_by_the_core(events) -> tuple[set[str], dict[str, Gallery]]:
    """The ids of the events that follow from these, and the galleries afterwards."""
    galleries, said = {}, set()
    for event in events:
        gallery = galleries.setdefault(event.gallery_id, Gallery(event.gallery_id))
        outcome = apply(
            gallery, event, similarity_threshold=0.70, occurred_at="2026-11-24T12:00:00Z"
        )
        gallery.write(outcome.writes)
        said |= {each.event_id for each in outcome.events if each.value is not None}
    return said, galleries


def put(stream, *events, **options) -> None:
    """Send events to the matcher, each under its key."""
    stream.send(TOPIC, *[(event.key.encode(), event.to_json()) for event in events], **options)


def said(stream) -> list[str]:
    """The ids of all events that the matcher published."""
    return [
        json.loads(record.value)["event_id"]
        for topic in ("duplicate-candidates", "video-progress", "identities")
        for record in stream.records(topic)
        if record.value is not None
    ]


def assert_decided_as(matcher, gallery) -> None:
    """A matcher has the decisions and the identities of a gallery."""
    url = f"{matcher.url}/galleries/{gallery.gallery_id}"
    identities = get(f"{url}/identities")["identities"]
    assert {one["identity_id"]: tuple(one["person_keys"]) for one in identities} == {
        name: one.person_keys for name, one in gallery.reviewed.notable.items()
    }
    decisions = get(f"{url}/decisions")
    assert decisions["count"] == len(gallery.decisions)
    assert len(decisions["not_carried_over"]) == sum(
        one.is_lost for one in gallery.decisions.values()
    )


def wait_until_done(stream) -> None:
    """Wait until the matcher has committed all that it was sent."""
    stream.eventually(lambda: stream.lag("matcher", TOPIC) == 0, "lag 0")


def status_of(url) -> tuple[int, dict[str, object]]:
    """The code and the JSON of an answer that is a refusal."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url)
    with caught.value as error:
        return error.code, json.load(error)


def test_the_stream_says_what_the_core_says_and_shows_the_matrix(stream):
    """Events, matrix and metrics of a matcher are those of the core for the same events."""
    stream = stream()
    matcher = stream.start("matcher")
    events = load()
    expected, galleries = said_by_the_core(events)
    put(stream, *events, headers=[("traceparent", TRACE)])
    wait_until_done(stream)

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
    assert pairs == {
        (a, b): entry.similarity
        for a, b, entry in galleries["g1"].candidates()
        if not galleries["g1"].reviewed.rules_out(a, b)
    }
    assert_decided_as(matcher, galleries["g1"])
    npy = np.load(io.BytesIO(get(f"{matcher.url}/galleries/g1/similarity", "application/x-npy")))
    np.testing.assert_allclose(npy, answer["similarity"], atol=1e-6)
    assert "similarity" not in get(f"{matcher.url}/galleries/g1/similarity?matrix=no")
    persons = {
        gallery["gallery_id"]: gallery["persons"]
        for gallery in get(f"{matcher.url}/galleries")["galleries"]
    }
    assert persons == {name: len(gallery.rows) for name, gallery in galleries.items()}
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


def test_an_event_that_cannot_be_decided_is_a_dead_letter_and_stops_nobody(stream, tmp_path):
    """A fault of the core ends one event with its reason; the matcher goes on with all others."""
    stream = stream()
    stream.variables = {"FAULT": "bug", "MARKS": str(tmp_path / "marks")}
    matcher = stream.start("matcher", script="matcher_with_a_fault.py")
    put(stream, *load())
    wait_until_done(stream)
    (dead,) = stream.dead()
    assert dead["error_code"] == "bad-event"
    assert "the event could not be decided (RuntimeError: a bug)" in dead["error_text"]
    assert matcher.is_ready
    assert matcher.stop() == 0


def test_health_checks_are_answered_while_a_video_closes(stream, tmp_path):
    """A closing runs beside the loop: the service answers, and the next events wait their turn."""
    stream = stream()
    marks = tmp_path / "marks"
    stream.variables = {"FAULT": "slow-closing", "MARKS": str(marks)}
    matcher = stream.start("matcher", script="matcher_with_a_fault.py")
    events = load()
    expected, _ = said_by_the_core(events)
    put(stream, *events)
    stream.eventually(marks.exists, "a closing begun")
    for path in ("healthz", "readyz", "galleries"):
        assert get(f"{matcher.url}/{path}")
    assert not stream.events("video-progress")
    marks.with_name("go").touch()
    wait_until_done(stream)
    assert set(said(stream)) == expected
    assert matcher.stop() == 0


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in FAULTS],
)
def test_nothing_is_lost_wherever_it_dies(stream, tmp_path, fault):
    """After any fault another matcher, with no local copy of the rows, knows all from Kafka."""
    stream = stream(kafka__session_timeout_seconds=2)
    stream.variables = {"FAULT": fault, "MARKS": str(tmp_path / "marks")}
    first = stream.start("matcher", script="matcher_with_a_fault.py")
    events = load()
    expected, galleries = said_by_the_core(events)
    put(stream, *events)
    assert first.wait(seconds=30) == FAULTS[fault]
    assert stream.lag("matcher", TOPIC) > 0

    second = stream.start("matcher")
    wait_until_done(stream)
    assert set(said(stream)) == expected
    second.stop()
    third = stream.start("matcher", matcher__state_folder=str(tmp_path / "elsewhere"))
    for name, gallery in galleries.items():
        answer = get(f"{third.url}/galleries/{name}/similarity")
        assert answer["person_keys"] == sorted(gallery.rows)
        assert {tuple(pair["person_keys"]) for pair in answer["candidates"]} == {
            (a, b) for a, b, _ in gallery.candidates() if not gallery.reviewed.rules_out(a, b)
        }
        assert_decided_as(third, gallery)


@pytest.mark.long
def test_matchers_join_and_leave_under_load_and_send_each_other_their_readers(stream):
    """Two matchers share the partitions, either answers for all, and one takes over from both."""
    stream = stream(topics__person_embeddings__partitions=8)
    first = stream.start("matcher")
    events = load(galleries=12)
    expected, galleries = said_by_the_core(events)
    size = len(events) // 4 + 1
    parts = [events[start : start + size] for start in range(0, len(events), size)]
    put(stream, *parts[0])
    second = stream.start("matcher", ready=False)
    put(stream, *parts[1])
    second.ready()
    stream.eventually(lambda: first.is_ready and second.is_ready, "both ready")
    put(stream, *parts[2])
    wait_until_done(stream)
    shares = [get(f"{matcher.url}/galleries")["partitions"] for matcher in (first, second)]
    assert sorted(shares[0] + shares[1]) == list(range(8))
    assert all(shares)
    for name in ("g0", "g1", "g2", "g3", "g4"):
        answers = [get(f"{matcher.url}/galleries/{name}/similarity") for matcher in (first, second)]
        assert answers[0] == answers[1]
    assert second.stop() == 0
    put(stream, *parts[3])
    wait_until_done(stream)
    assert set(said(stream)) == expected
    for name, gallery in galleries.items():
        answer = stream.eventually(
            lambda name=name: first.is_ready and get(f"{first.url}/galleries/{name}/similarity"),
            name,
        )
        assert answer["person_keys"] == sorted(gallery.rows)


@pytest.mark.parametrize(("chance", "last"), [("0.1", "none"), ("0", "the last, three times")])
def test_events_that_faust_forgets_are_taken_in_their_turn(stream, tmp_path, chance, last):
    """Events that Faust has read and forgotten, the last one too, are taken in their order.

    Of the last one no later event tells.
    """
    stream = stream()
    events = load()
    last = events[-1].event_id if last != "none" else last
    stream.variables = {"MARKS": str(tmp_path / "marks"), "CHANCE": chance, "LAST": last}
    matcher = stream.start("matcher", script="matcher_that_forgets_events.py")
    expected, galleries = said_by_the_core(events)
    put(stream, *events)
    wait_until_done(stream)
    assert (tmp_path / "marks").stat().st_size > 0
    assert sorted(said(stream)) == sorted(expected)
    for name, gallery in galleries.items():
        answer = get(f"{matcher.url}/galleries/{name}/similarity")
        assert answer["person_keys"] == sorted(gallery.rows)


def test_offsets_that_are_no_messages_hold_nothing_up(stream, tmp_path):
    """The marks that a producer with transactions leaves in the log do not end the matcher.

    No consumer is given them. The one at the very end counts as waiting, until the matcher knows
    that Faust has read to the end: the next look finds nothing that waits.
    """
    stream = stream()
    marks = tmp_path / "marks"
    stream.variables = {"MARKS": str(marks)}
    matcher = stream.start("matcher", script="matcher_that_notes_its_looks.py")
    events = load(galleries=1)
    expected, _ = said_by_the_core(events)
    for start in range(0, len(events), 20):
        records = [(event.key.encode(), event.to_json()) for event in events[start : start + 20]]
        stream.send_in_transaction(TOPIC, *records)
    stream.eventually(lambda: sorted(said(stream)) == sorted(expected), "all said")
    before = len(marks.read_text().split())

    def nothing_waits() -> bool:
        # The first look that was noted since then may have begun earlier.
        return marks.read_text().split()[before + 1 :][-1:] == ["0"]

    stream.eventually(nothing_waits, "a look that finds nothing")
    assert "1" in marks.read_text().split()
    assert matcher.is_ready
    assert matcher.stop() == 0


def test_bad_events_are_given_up_with_the_reason_and_harm_no_other(stream):
    """Each bad event is a dead letter with its reason, and good ones of any key are handled."""
    limit = 6 * 1024 * 1024
    stream = stream(kafka__max_event_bytes=limit)
    matcher = stream.start("matcher")
    good = video("g0", "a", seed=1)
    expected, _ = said_by_the_core(good)
    template = json.loads(good[0].to_json()) | {"person_id": 77, "person_key": "a/77"}
    nan = dict(template["vector"], data="AADAfw" + template["vector"]["data"][6:])
    turned_round = {"first_seen_seconds": 1e15, "last_seen_seconds": -1e15}
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
        "first_seen_seconds <= last_seen_seconds": json.dumps(template | turned_round).encode(),
    }
    put(stream, *good[:10])
    stream.send(TOPIC, *[(b"g0", value) for value in bad.values()], (b"g0", None))
    put(stream, *good[10:15])
    home = stream.records(TOPIC)[0].partition
    stream.send(
        TOPIC, *[(b"foreign", event.to_json()) for event in good[15:]], partition=(home + 1) % 4
    )
    wait_until_done(stream)
    stream.eventually(lambda: stream.states("a") == ["done"], "the strays' closing")
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
    """A gallery that is silent for its time goes, from Kafka too; one that gets events stays."""
    stream = stream(matcher__gallery_expiry_hours=6 / 3600)
    matcher = stream.start("matcher")
    seeds = itertools.count(1)
    put(stream, *video("old", "a", seed=1))

    def only_kept_is_left() -> bool:
        names = names_of_galleries(matcher)
        if names == {"kept"}:
            return True
        seed = next(seeds)
        put(stream, *video("kept", f"v{seed}", seed=seed, persons=1))
        return False

    stream.eventually(only_kept_is_left, "the old gallery gone", seconds=30)
    kinds = [json.loads(record.value)["kind"] for record in stream.records(TOPIC)]
    expired = stream.records(TOPIC)[kinds.index("gallery-expired")]
    assert GalleryExpired.from_json(expired.value).gallery_id == "old"
    wait_until_done(stream)
    matcher.stop()
    other = stream.start(
        "matcher",
        matcher__state_folder=str(tmp_path / "elsewhere"),
        matcher__gallery_expiry_hours=24,
    )
    assert names_of_galleries(other) == {"kept"}


def names_of_galleries(matcher) -> set[str]:
    """The galleries that a matcher knows."""
    galleries = get(f"{matcher.url}/galleries")["galleries"]
    return {gallery["gallery_id"] for gallery in galleries}
