"""Decisions on `review-decisions`, and what a real matcher makes of them."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from processes import eventually
from services import get
from test_matcher import assert_decided_as, decided, put, said_by_the_core, video, wait_until_done
from test_older_files import COMMITS, FIXTURES, GALLERY, changelog, send_to_changelog

import streamproc
from streamproc.decisions import SelectedDecision, UndoDecision, parse_decision
from streamproc.events import PersonIdentity, TracksReady
from streamproc.ids import video_id_of
from streamproc.kafka.records import partition_of
from streamproc.kafka.topics import wanted_topics
from streamproc.tracks import load_tracks

TOPIC = "review-decisions"


def identities(stream):
    """What the topic says last, by its keys."""
    last = {}
    for record in stream.records("identities"):
        last[record.key] = record.value and PersonIdentity.from_json(record.value)
    return {json.loads(key)[1]: one for key, one in last.items() if one is not None}


def decisions_of(matcher, gallery_id):
    """What a matcher knows."""
    return get(f"{matcher.url}/galleries/{gallery_id}/decisions")


def wait_for(stream, matcher, gallery_id, count):
    """Wait until a matcher knows so many decisions; return them."""

    def known():
        found = get(f"{matcher.url}/galleries/{gallery_id}/decisions")
        return found if found["count"] == count else None

    return stream.eventually(known, f"{count} decisions")


def test_decisions_from_anybody_make_identities_and_last(stream, tmp_path):
    """From Python and as bare JSON under any key; a bad one is a dead letter; a restart keeps all.

    One that claims to be of the far future counts as a minute after its record.
    """
    stream = stream()
    matcher = stream.start("matcher")
    events = video("lobby", "a", seed=1)
    put(stream, *events)
    same, no = decided("lobby", "a/1", "a/2", "same"), decided("lobby", "a/2", "a/3", "different")
    streamproc.decide(
        same, no, bootstrap=stream.flags["bootstrap"], kafka__topic_prefix=prefix_of(stream)
    )
    far = decided("lobby", "a/4", "a/5", "same").saying(decided_at="2999-01-01T00:00:00Z")
    bare = {name: value for name, value in json.loads(far.to_json()).items() if name != "event_id"}
    foreign = b"some other key"
    stream.send(TOPIC, (foreign, json.dumps(bare).encode()), (foreign, b'{"kind": "pair"}'))
    found = wait_for(stream, matcher, "lobby", 3)
    last = parse_decision(json.dumps(found["decisions"][-1]).encode())
    assert last.decision_id == far.decision_id
    assert datetime.fromisoformat(last.decided_at) < datetime.now(UTC) + timedelta(minutes=2)
    stream.eventually(lambda: len(stream.dead()) == 1, "the dead letter")
    [dead] = stream.dead()
    assert (dead["topic"].endswith(TOPIC), dead["error_code"]) == (True, "bad-event")

    _, galleries = said_by_the_core([*events, same, no, last])
    gallery = galleries["lobby"]
    wait_until_done(stream)
    assert_decided_as(matcher, gallery)
    assert {name: tuple(one.person_keys) for name, one in identities(stream).items()} == {
        name: one.person_keys for name, one in gallery.reviewed.notable.items()
    }
    partitions = stream.settings.topics.identities.partitions
    assert {record.partition for record in stream.records("identities")} == {
        partition_of("lobby", partitions)
    }
    metrics = matcher.metrics()
    assert metrics["streamproc_decisions"] == 3
    assert metrics["streamproc_identities_total"] == len(identities(stream))

    # An undo takes back what was said; the record without a value is the last of its key.
    stream.send(
        TOPIC,
        (
            b"lobby",
            UndoDecision.make(
                gallery_id="lobby", decided_at="2999-01-01T00:00:00Z", undoes=far.decision_id
            ).to_json(),
        ),
    )
    wait_for(stream, matcher, "lobby", 4)
    assert [one.person_keys for one in identities(stream).values()] == [["a/1", "a/2"]]
    assert matcher.stop() == 0
    other = stream.start("matcher", matcher__state_folder=str(tmp_path / "elsewhere"))
    assert wait_for(stream, other, "lobby", 4)
    assert get(f"{other.url}/galleries/lobby/identities")["count"] == 1
    other = forget_one_and_all(stream, other, tmp_path)
    name = f"{prefix_of(stream)}identities"
    assert stream.topic_configs(name)[name]["cleanup.policy"] == "compact"
    assert [spec.partitions for spec in wanted_topics(stream.settings) if spec.name == name] == [
        partitions
    ]


def forget_one_and_all(stream, matcher, tmp_path):
    """Have a person forgotten, then the gallery; return the matcher that was started anew then.

    Nothing comes back with the next matcher, nor by events that were sent before.
    """
    flags = ("forget", "--url", matcher.url)
    for names, text in (
        (("--person", "a/77"), "found nothing of that name in any gallery"),
        (("--person", "7"), "expected a track, as VIDEO_ID/NUMBER"),
        (("--video", "a", "--gallery", "nowhere"), "no gallery 'nowhere'"),
        ((), "expected --person, --identity, --video or --gallery"),
    ):
        refused = stream.cli(*flags, *names)
        assert refused.returncode == 2
        assert text in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    [identity_id] = identities(stream)
    known = stream.cli(*flags, "--identity", identity_id, "--dry-run")
    assert "lobby: 2 persons, " in known.stdout
    done = stream.cli(*flags, "--person", "a/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("lobby: 1 person, ")
    assert ", 2 decisions, 1 identity\n" in done.stdout
    assert f"{prefix_of(stream)}person-embeddings" in done.stderr
    assert "announcing a video again brings its people back" in done.stderr
    assert identities(stream) == {}
    assert matcher.stop() == 0

    again = stream.start("matcher", matcher__state_folder=str(tmp_path / "third"))
    put(stream, *video("lobby", "a", seed=1))  # as a worker does that is started again
    stream.send(TOPIC, (b"lobby", decided("lobby", "a/1", "a/2", "same").to_json()))
    stream.eventually(lambda: stream.lag("decisions", TOPIC) == 0, "the decision sent on")
    wait_until_done(stream)
    url = f"{again.url}/galleries/lobby"
    persons = get(f"{url}/persons")["persons"]
    assert "a/2" not in {one["person_key"] for one in persons}
    assert not any(2 in one["seen_with"] for one in persons)
    assert persons
    assert get(f"{url}/held?person=a%2F2")["decisions"] == 0
    assert all("a/2" not in json.dumps(one) for one in get(f"{url}/decisions")["decisions"])
    done = stream.cli("forget", "--url", again.url, "--gallery", "lobby")
    assert done.returncode == 0, done.stderr
    assert get(f"{again.url}/galleries")["galleries"] == []
    put(stream, *video("lobby", "a", seed=1))
    wait_until_done(stream)
    assert get(f"{again.url}/galleries")["galleries"] == []
    standing = {}
    for event in stream.events("duplicate-candidates"):
        standing[event["candidate_id"]] = event["state"]
    assert set(standing.values()) <= {"withdrawn"}
    return again


def prefix_of(stream):
    """The prefix of an installation's topics."""
    return stream.settings.kafka.topic_prefix


def test_decisions_outlive_their_gallery_and_go_after_their_own_time(stream, tmp_path):
    """The rows expire and identities are taken back; `review.keep_days` later decisions go."""
    day = 24 * 3600
    stream = stream(matcher__gallery_expiry_hours=2 / 3600)
    matcher = stream.start("matcher")
    put(stream, *video("lobby", "a", seed=1, persons=3))
    stream.send(TOPIC, (b"lobby", decided("lobby", "a/1", "a/2", "same").to_json()))
    stream.eventually(lambda: identities(stream), "the identity")

    def galleries(service):
        return {one["gallery_id"]: one for one in get(f"{service.url}/galleries")["galleries"]}

    stream.eventually(lambda: galleries(matcher)["lobby"]["persons"] == 0, "the rows gone")
    assert galleries(matcher)["lobby"]["decisions"] == 1
    stream.eventually(lambda: not identities(stream), "the identity taken back")
    wait_until_done(stream)
    matcher.stop()
    again = stream.start(
        "matcher",
        matcher__state_folder=str(tmp_path / "elsewhere"),
        review__keep_days=1 / day,
    )
    stream.eventually(lambda: not galleries(again), "the decisions gone")
    wait_until_done(stream)


def test_a_gallery_that_an_older_version_wrote_can_be_decided(stream):
    """Its pair goes when it is called different, and is there again after the undo."""
    stream = stream(topics__person_embeddings__partitions=1)
    send_to_changelog(stream, changelog(FIXTURES / COMMITS[0]))
    matcher = stream.start("matcher")
    url = f"{matcher.url}/galleries/{GALLERY}"
    before = get(f"{url}/candidates")
    a, b = (one["person_key"] for one in before["candidates"][0]["persons"])
    no = decided(GALLERY, a, b, "different")
    stream.send(TOPIC, (b"", no.to_json()))
    wait_for(stream, matcher, GALLERY, 1)
    after = get(f"{url}/candidates")
    assert after["count"] == before["count"] - 1
    assert [event["reason"] for event in stream.events("duplicate-candidates")] == ["decided"]
    undo = UndoDecision.make(
        gallery_id=GALLERY, decided_at="2026-11-24T13:00:00Z", undoes=no.decision_id
    )
    stream.send(TOPIC, (None, undo.to_json()))
    wait_for(stream, matcher, GALLERY, 2)
    assert get(f"{url}/candidates")["count"] == before["count"]
    assert matcher.stop() == 0


def test_merge_writes_the_tracks_of_a_gallery_as_the_stream_decided(stream, sample, tmp_path):
    """One file a video, of which the announcements are there; the others are named.

    What comes out is the sample with the two tracks of one person under one number.
    """
    stream = stream()
    matcher = stream.start("matcher")
    flags = ("merge", "--gallery", "lobby", "--url", matcher.url)
    for name in ("a.mp4", "b.mp4"):
        stream.announce(name, gallery_id="lobby")
    stream.announce("c.mp4", gallery_id="another")
    video_id = video_id_of("a.mp4")
    put(stream, *video("lobby", video_id, seed=1, persons=6))
    same = decided("lobby", f"{video_id}/1", f"{video_id}/6", "same")
    wanted = SelectedDecision.make(
        gallery_id="lobby",
        decided_at="2026-11-24T12:00:00Z",
        person_keys=[f"{video_id}/1"],
        wanted=True,
    )
    for decision in (same, wanted):
        stream.send(TOPIC, (b"lobby", decision.to_json()))
    wait_for(stream, matcher, "lobby", 2)

    done = stream.cli(*flags, "-o", str(tmp_path / "merged"))
    assert done.returncode == 0, done.stderr
    assert "12 tracks before, 11 identities after, by 2 decisions" in done.stderr
    written = {path.name: load_tracks(path).tracks for path in (tmp_path / "merged").iterdir()}
    before = {
        track.person_id: len(track) for track in load_tracks(sample / "sample.persons.npz").tracks
    }
    assert {name: len(tracks) for name, tracks in written.items()} == {
        "a.mot.txt": 5,
        "b.mot.txt": 6,
    }
    # A number is one person in all videos, so those of one video are others than before.
    numbers = {name: {track.person_id for track in tracks} for name, tracks in written.items()}
    assert not numbers["a.mot.txt"] & numbers["b.mot.txt"]
    assert sorted(len(track) for track in written["a.mot.txt"]) == sorted(
        count + (before[6] if number == 1 else 0) for number, count in before.items() if number != 6
    )
    likely = stream.cli(*flags, "--dry-run", "--likely")
    assert likely.returncode == 0, likely.stderr
    assert "which nobody decided" in likely.stderr
    done = stream.cli(*flags, "--selected", "-o", str(tmp_path / "wanted"))
    assert done.returncode == 0, done.stderr
    [only] = load_tracks(tmp_path / "wanted" / "a.mot.txt").tracks
    assert len(only) == before[1] + before[6]

    (stream.media / "b.persons.npz").unlink()
    put(stream, *video("lobby", "unannounced", seed=2, persons=2))
    wait_until_done(stream)
    done = stream.cli(*flags, "--dry-run")
    assert done.returncode == 4
    assert "left out: b: they were found in its frames, and are in no file" in done.stderr
    assert "left out: unannounced: its `video-ready`" in done.stderr
    # Tracks that a worker found in the video count where no file lies beside it.
    (stream.media / "tracks").mkdir()
    shutil.copy(sample / "sample.persons.npz", stream.media / "tracks" / "b.npz")
    found = TracksReady.make(
        video_uri="b.mp4",
        gallery_id="lobby",
        run_id="r1",
        submitted_at="2026-11-24T12:00:00Z",
        tracks={"uri": "tracks/b.npz"},
    )
    stream.send("tracks-ready", (found.video_id.encode(), found.to_json()))
    done = stream.cli(*flags, "--dry-run")
    assert "left out: b:" not in done.stderr
    assert "12 tracks before" in done.stderr
    unknown = stream.cli("merge", "--gallery", "nobody", "--url", matcher.url, "--dry-run")
    assert unknown.returncode == 2
    assert "no gallery" in unknown.stderr
    assert stream.cli("merge", "--dry-run").returncode == 2


@pytest.mark.crash
def test_decisions_survive_random_kills(stream):
    """Matchers are killed at random while people decide: none is lost, and identities are right."""
    stream = stream(kafka__session_timeout_seconds=6)
    generator = random.Random(7)
    running = [stream.start("matcher"), stream.start("matcher")]
    events = video("lobby", "a", seed=1, persons=40)
    put(stream, *events)
    made = []
    for second in range(50):
        a, b = generator.sample(range(1, 41), 2)
        verdict = generator.choice(["same", "same", "different", "unsure"])
        made.append(decided("lobby", f"a/{a}", f"a/{b}", verdict, second))
        stream.send(TOPIC, (b"lobby", made[-1].to_json()))
        if second % 10 == 5:
            running.pop(generator.randrange(2)).kill()
            running.append(stream.start("matcher", ready=False))
    _, galleries = said_by_the_core([*events, *made])
    gallery = galleries["lobby"]

    def is_known():
        if not all(one.is_ready for one in running):
            return False
        with contextlib.suppress(OSError):
            return decisions_of(running[0], "lobby")["count"] == len(made)
        return False

    eventually(is_known, "all decisions", seconds=120, processes=running)
    assert_decided_as(running[0], gallery)
    assert {name: tuple(one.person_keys) for name, one in identities(stream).items()} == {
        name: one.person_keys for name, one in gallery.reviewed.notable.items()
    }
    assert not stream.dead()
