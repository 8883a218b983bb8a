"""The whole stream on a real broker.

What replay finds, the stream finds; whatever is killed, nothing is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict

import brokers
import numpy as np
import pytest
import services
import small_detectors
from processes import Process, eventually
from squares import write_squares

from streamproc import replay
from streamproc.ids import video_id_of
from streamproc.tracks import load_tracks

SERVICES = ("worker", "matcher", "animator")


def done(stream, *uris) -> bool:
    """Whether the matcher has said `done` of all of them."""
    last = defaultdict(str)
    for event in stream.events("video-progress"):
        if event["state"] == "done":
            last[event["video_id"]] = "done"
    return all(last[video_id_of(uri)] == "done" for uri in uris)


def standing(stream) -> dict[str, float]:
    """The candidates that hold after all that was said: id to similarity."""
    pairs = {}
    for event in stream.events("duplicate-candidates"):
        if event["state"] == "withdrawn":
            pairs.pop(event["candidate_id"], None)
        else:
            pairs[event["candidate_id"]] = event["similarity"]
    return pairs


def undisturbed(stream, names, gallery=None) -> dict[str, float]:
    """What replay finds in the same files: the same ids, as video ids come from the same names."""
    videos = [stream.media / name for name in names]
    if gallery is not None:
        return similarities(replay(videos, gallery=gallery))
    found = {}
    for video in videos:
        found |= similarities(replay(video))
    return found


def similarities(result) -> dict[str, float]:
    """The candidates of a replay: id to similarity."""
    return {event.candidate_id: event.similarity for event in result.candidates}


def animations(stream) -> dict[str, str]:
    """person_key to state, the newest word."""
    return {event["person_key"]: event["state"] for event in stream.events("animation-ready")}


def assert_repeats_only(stream) -> None:
    """Whatever was said twice of two runs' pair is the same event.

    Two runs have one similarity. What may differ between two events in the same state is the
    probability, which changes when a gallery's next video is closed.
    """
    found = defaultdict(set)
    event_ids = defaultdict(set)
    for event in stream.events("duplicate-candidates"):
        pair = (event["candidate_id"], *[person["run_id"] for person in event["persons"]])
        found[pair].add(event["similarity"])
        said = (event["state"], event.get("reason"), event.get("probability"))
        event_ids[pair, said].add(event["event_id"])
    assert found
    assert {pair: values for pair, values in found.items() if len(values) > 1} == {}
    assert {said: ids for said, ids in event_ids.items() if len(ids) > 1} == {}


def standing_groups(stream) -> dict[str, list[str]]:
    """The groups that hold after all that was said: id to person keys."""
    groups = {}
    for event in stream.events("duplicate-groups"):
        if event["state"] == "withdrawn":
            groups.pop(event["group_id"], None)
        else:
            groups[event["group_id"]] = event["person_keys"]
    return groups


def test_replay_and_stream_give_the_same_candidates_and_groups(stream):
    """Three videos of one gallery have the same candidates and groups in the stream and replay."""
    stream = stream()
    for name in SERVICES:
        stream.start(name)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        submitted = stream.cli("submit", str(stream.media / name), "--gallery", "lobby")
        assert submitted.stdout.strip() == video_id_of(name)
    watched = stream.cli(
        "watch", "--until-done", video_id_of("c.mp4"), "--from-beginning", "--json"
    )
    assert watched.returncode == 0, watched.stderr
    stream.eventually(lambda: done(stream, "a.mp4", "b.mp4", "c.mp4"), "done")
    names = ("a.mp4", "b.mp4", "c.mp4")
    replayed = replay([stream.media / name for name in names], gallery="lobby")
    expected = similarities(replayed)
    found = standing(stream)
    assert found.keys() == expected.keys()
    assert len(found) > 3
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    groups = {event.group_id: event.person_keys for event in replayed.groups}
    assert standing_groups(stream) == groups != {}
    assert all(json.loads(line)["gallery_id"] == "lobby" for line in watched.stdout.splitlines())
    stream.eventually(lambda: len(animations(stream)) == 18, "animations")
    assert set(animations(stream).values()) == {"ready"}
    assert len(list(stream.media.glob("animations/*/*/person_*.webp"))) == 2 * 18
    for event in stream.events("animation-ready"):
        strip = (stream.media / event["crops"]["uri"]).read_bytes()
        assert hashlib.sha256(strip).hexdigest() == event["crops"]["sha256"]


def test_the_research_clip_gives_the_same_candidates_both_ways(stream, shared):
    """PETS has the same candidates in the stream as in replay, with the published weights."""
    stream = stream()
    weights = str(shared / "models" / "osnet_x0_25_msmt17.czqosu.onnx")
    video = shared / "data" / "videos" / "vtest.avi"
    tracks = shared / "data" / "persons" / "PETS09-S2L1.canonical_persons.npz"
    (stream.media / "vtest.avi").symlink_to(video)
    (stream.media / "copy.avi").write_bytes(video.read_bytes())
    (stream.media / "copy.npz").write_bytes(tracks.read_bytes())
    for name in ("worker", "matcher"):
        stream.start(name, clustering__osnet_model=weights)
    stream.announce("copy.avi", tracks={"uri": "copy.npz"})
    # A link that leads out of the media root is no file under it.
    stream.announce("vtest.avi", tracks={"uri": "copy.npz"})
    stream.eventually(lambda: done(stream, "copy.avi") and stream.dead(), "done")
    result = replay(
        stream.media / "copy.avi",
        persons=stream.media / "copy.npz",
        clustering__osnet_model=weights,
    )
    expected = similarities(result)
    found = standing(stream)
    assert found.keys() == expected.keys()
    assert len(found) >= 12
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    assert [reason["error_code"] for reason in stream.dead()] == ["bad-video"]


def test_the_animator_dies_and_is_slow_and_stops_nothing(stream):
    """Videos are done while the animator hangs, and the next animator makes all animations."""
    stream = stream()
    stream.start("worker")
    stream.start("matcher")
    animator = stream.start("animator")
    animator.send(signal.SIGSTOP)
    for name in "abcd":
        stream.announce(f"{name}.mp4")
    stream.eventually(
        lambda: done(stream, *(f"{name}.mp4" for name in "abcd")), "done without the animator"
    )
    animator.send(signal.SIGCONT)
    animator.kill()
    stream.start("animator", ready=False)
    stream.eventually(lambda: len(animations(stream)) == 24, "animations in the end")
    assert not stream.dead()


def test_an_animation_that_cannot_be_made_is_announced_as_failed(stream):
    """One animation that fails is announced with its error, and the others are made."""
    stream = stream()
    stream.start("animator", script="animator_fails_once.py")
    stream.announce("a.mp4")
    stream.eventually(lambda: len(animations(stream)) == 6, "six persons spoken of")
    assert sorted(animations(stream).values()) == ["failed", *["ready"] * 5]
    (failed,) = [event for event in stream.events("animation-ready") if event["state"] == "failed"]
    assert failed["error"] == {"code": "not-made", "text": "ValueError: no picture"}
    stream.eventually(lambda: stream.lag("animator") == 0, "lag 0")


@pytest.mark.crash
@pytest.mark.usefixtures("jars")
def test_the_broker_dies_for_fifteen_seconds(tmp_path, sample):
    """With a broker that is away for a while, the candidates are those of replay."""
    broker = brokers.start_broker(tmp_path / "kafka")
    stream = services.Stream(broker.bootstrap, tmp_path, "t.", kafka__session_timeout_seconds=10)
    try:
        names = copies(stream, sample, 6)
        assert stream.cli("topics", "create").returncode == 0
        running = [stream.start(name) for name in SERVICES]
        for name in names:
            stream.announce(name, gallery_id="lobby")
        stream.eventually(lambda: stream.events("person-embeddings"), "begun")
        broker.kill()
        time.sleep(15)  # what is asked for: a broker that is away for so long
        broker.start()
        supervise(stream, running, lambda: done(stream, *names), seconds=150)
        expected = undisturbed(stream, names, gallery="lobby")
        assert standing(stream) == pytest.approx(expected, abs=1e-5)
        assert not stream.dead()
        assert_repeats_only(stream)
    finally:
        stream.close()
        broker.stop()


@pytest.mark.crash
def test_random_kills_under_load_lose_nothing(stream, sample):
    """With a service killed every few seconds, the candidates are those of replay."""
    chaos_seconds = float(os.environ.get("STREAMPROC_TEST_CHAOS_SECONDS", "60"))
    seed = int(os.environ.get("STREAMPROC_TEST_SEED", "1"))
    random.seed(seed)
    stream = stream(
        kafka__session_timeout_seconds=6, kafka__max_poll_interval_seconds=10, jobs__attempts=50
    )
    names = []
    kinds = ("worker", "worker", "matcher", "matcher", "animator")
    running = [stream.start(name) for name in kinds]
    kills = 0
    end = time.monotonic() + chaos_seconds
    next_kill = time.monotonic() + 4
    while time.monotonic() < end:
        new = copies(stream, sample, 1, first=len(names))
        names += new
        stream.announce(new[0], gallery_id=gallery_of(len(names) - 1))
        time.sleep(random.uniform(1, 2))  # a load, not a wait for something
        revive(stream, running)
        if time.monotonic() > next_kill:
            victim = random.choice([service for service in running if not service.has_ended()])
            victim.kill()
            kills += 1
            next_kill = time.monotonic() + random.uniform(4, 9)
    supervise(stream, running, lambda: done(stream, *names), seconds=600)
    print(f"seed {seed}: {len(names)} videos, {kills} kills")
    assert kills >= 5
    members = defaultdict(list)
    for number, name in enumerate(names):
        members[gallery_of(number)].append(name)
    expected = {}
    for gallery, videos in members.items():
        expected |= undisturbed(stream, videos, gallery=gallery)
    found = standing(stream)
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    assert_repeats_only(stream)
    assert not stream.dead()
    stream.eventually(lambda: len(animations(stream)) == 6 * len(names), "animations")


def gallery_of(number) -> str:
    """Five videos a gallery: all are the same clip, and a person keeps at most 20 neighbours."""
    return f"gallery{number // 5}"


def copies(stream, sample, count, first=0) -> list[str]:
    """More videos of the sample, under names of their own."""
    names = []
    for number in range(first, first + count):
        for suffix in ("mp4", "persons.npz"):
            target = stream.media / f"v{number}.{suffix}"
            target.write_bytes((sample / f"sample.{suffix}").read_bytes())
        names.append(f"v{number}.mp4")
    return names


def revive(stream, running) -> None:
    """What a supervisor does: start again what died."""
    for i, service in enumerate(running):
        if service.has_ended():
            running[i] = stream.start(service.name, ready=False)


def supervise(stream, running, finished, *, seconds) -> None:
    """Wait until `finished`, and start again meanwhile what dies."""

    def is_finished() -> bool:
        revive(stream, running)
        return finished()

    eventually(is_finished, "all videos done", seconds=seconds, processes=running)


def test_dev_runs_all_services_with_a_broker_of_its_own(jars, tmp_path, sample):
    """`dev` starts Kafka from KAFKA_HOME, finds the sample's pair, and stops at Ctrl-C."""
    media = tmp_path / "media"
    media.mkdir()
    for name in ("sample.mp4", "sample.persons.npz"):
        (media / name).write_bytes((sample / name).read_bytes())
    product = [sys.executable, "-m", "streamproc"]
    folders = ["--media-root", str(media), "--folder", str(tmp_path / "dev")]
    dev = Process(
        "dev",
        [*product, "dev", *folders],
        tmp_path / "dev.log",
        environment=os.environ
        | {
            "KAFKA_HOME": str(jars),
            "STREAMPROC_SERVICE__HTTP_PORT": "0",
            "STREAMPROC_REVIEW__PORT": "0",
        },
        folder=tmp_path,
    )
    try:
        eventually(lambda: "streamproc submit" in dev.log, "what to type next", processes=[dev])
        bootstrap = re.search(r"^Kafka at (\S+);", dev.log, re.MULTILINE)[1]
        flags = ["--bootstrap", bootstrap, "--media-root", str(media)]
        submitted = subprocess.run(
            [*product, "submit", str(media / "sample.mp4"), *flags],
            capture_output=True,
            text=True,
            check=True,
        )
        video_id = submitted.stdout.strip()
        watched = subprocess.run(
            [*product, "watch", "--until-done", video_id, "--from-beginning", *flags],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert f"proposed\t{video_id}/1\t{video_id}/6\t0.99" in watched.stdout
        dev.send(signal.SIGINT)
        assert dev.wait() == 0
    finally:
        dev.kill()
    for name in (*SERVICES, "review"):
        assert f"{name} has stopped" in dev.log


def test_a_video_without_tracks_gives_the_same_in_stream_and_replay(stream, sample):
    """The worker finds the people and keeps their tracks, of which the animator makes animations.

    These are what replay makes of the same tracks; sent again, the video says nothing else.
    """
    options = {"detector__input_size": 320}
    stream = stream(detector__input_size="320")
    (stream.media / "alone.mp4").write_bytes((sample / "sample.mp4").read_bytes())
    running = {name: stream.start(name) for name in SERVICES}
    announced = {"submitted_at": "2026-11-24T09:30:00Z", "labels": {"site": "hall 3"}}
    stream.announce("alone.mp4", **announced)
    stream.eventually(lambda: done(stream, "alone.mp4"), "done")
    expected = replay(stream.media / "alone.mp4", **options)
    assert len(expected.person_ids) >= 3
    found = standing(stream)
    assert found.keys() == similarities(expected).keys()
    (run_id,) = {event["run_id"] for event in stream.events("person-embeddings")}
    assert run_id == expected.summary["videos"][0]["run_id"]

    (ready,) = stream.events("tracks-ready")
    assert (ready["run_id"], ready["video_id"]) == (run_id, video_id_of("alone.mp4"))
    assert {name: ready[name] for name in announced} == announced
    assert ready["tracks"]["uri"].startswith("tracks/")
    tracks = stream.media / ready["tracks"]["uri"]
    assert hashlib.sha256(tracks.read_bytes()).hexdigest() == ready["tracks"]["sha256"]
    (closing,) = [e for e in stream.events("person-embeddings") if e["kind"] == "video-closed"]
    assert ready["occurred_at"] <= closing["occurred_at"]

    # Each person came while its track grew, and last as replay says it once.
    last = {}
    for event in stream.events("person-embeddings"):
        if event["kind"] == "person":
            before = last.get(event["person_id"], {"revision": 0, "frames_tracked": 0})
            assert event["revision"] == before["revision"] + 1
            assert event["frames_tracked"] > before["frames_tracked"]
            last[event["person_id"]] = event
    assert sorted(last) == closing["person_ids"] == list(expected.person_ids)
    assert [last[person_id]["revision"] for person_id in closing["person_ids"]] == closing[
        "revisions"
    ]
    assert max(closing["revisions"]) > 1
    for event, vector in zip(map(last.get, sorted(last)), expected.embeddings, strict=True):
        assert event["revision"] <= max(2, 3 + math.log2(event["frames_tracked"] / 64))
        found_vector = np.frombuffer(base64.b64decode(event["vector"]["data"]), "<f4")
        np.testing.assert_allclose(found_vector, vector, atol=1e-5)

    out = stream.folder / "out"
    again = replay(stream.media / "alone.mp4", persons=tracks, out=out)
    assert again.person_ids == expected.person_ids
    drawn = {
        int(path.stem.removeprefix("person_")): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (out / "webp_viewer/webp").glob("person_*[0-9].webp")
    }
    stream.eventually(lambda: len(animations(stream)) >= len(drawn) > 2, "animations")
    stream.eventually(lambda: stream.lag("animator", "tracks-ready") == 0, "all of them")
    spoken = stream.events("animation-ready")
    assert {e["run_id"] for e in spoken} == {run_id}
    assert {e["person_id"]: e["sha256"] for e in spoken if e["state"] == "ready"} == drawn

    # The tracks that were written are no file beside the video: people are found again.
    stream.announce("alone.mp4", **announced)
    stream.eventually(lambda: len(stream.events("tracks-ready")) == 2, "found again")
    first, second = stream.events("tracks-ready")
    assert first["event_id"] == second["event_id"]
    stream.eventually(lambda: stream.lag("animator", "tracks-ready") == 0, "animated again")
    forget_one_and_all(stream, running["matcher"].url, tracks, announced)
    assert not stream.dead()


def forget_one_and_all(stream, url, tracks, announced):
    """Have one person of the video forgotten, then all: files go, and later ones come back."""
    video_id = video_id_of("alone.mp4")
    pictures = stream.media / "animations" / video_id

    def drawn():
        names = {path.name.removeprefix("person_") for path in pictures.rglob("*.webp")}
        return {int(name.partition(".")[0]) for name in names}  # of animations and strips

    first, *others = sorted(drawn())
    done_so = stream.cli("forget", "--url", url, "--person", f"{video_id}/{first}")
    assert done_so.returncode == 0, done_so.stderr
    assert f"{video_id}: 1 person" in done_so.stdout
    stream.eventually(lambda: drawn() == set(others), "the animation gone")
    stream.eventually(lambda: len(stream.events("tracks-ready")) == 3, "the tracks anew")
    last = stream.events("tracks-ready")[-1]
    assert hashlib.sha256(tracks.read_bytes()).hexdigest() == last["tracks"]["sha256"]
    assert first not in {track.person_id for track in load_tracks(tracks).tracks}
    assert set(others) <= {track.person_id for track in load_tracks(tracks).tracks}

    # A run from before leaves the person out.
    stream.announce("alone.mp4", **announced)
    stream.eventually(lambda: len(stream.events("tracks-ready")) == 4, "once more")
    stream.eventually(lambda: stream.lag("animator", "tracks-ready") == 0, "animated once more")
    assert drawn() == set(others)
    assert hashlib.sha256(tracks.read_bytes()).hexdigest() == last["tracks"]["sha256"]
    stream.eventually(lambda: stream.lag("matcher", "person-embeddings") == 0, "matched")
    persons = services.get(f"{url}/galleries/{video_id}/persons")["persons"]
    assert {one["person_id"] for one in persons}.isdisjoint({first})

    done_so = stream.cli("forget", "--url", url, "--gallery", video_id)
    assert done_so.returncode == 0, done_so.stderr
    stream.eventually(lambda: not drawn() and not tracks.exists(), "all files gone")
    assert services.get(f"{url}/galleries")["galleries"] == []
    stream.announce("alone.mp4")
    stream.eventually(lambda: first in drawn() and tracks.exists(), "all back")


def test_the_animator_takes_tracks_ready_as_its_order(stream):
    """A video without tracks is passed over until its tracks come; bad ones are a dead letter."""
    stream = stream()
    stream.start("animator")
    (stream.media / "alone.mp4").symlink_to("a.mp4")
    stream.announce("alone.mp4")
    stream.announce("b.mp4", options={"animate": False})
    stream.eventually(lambda: stream.lag("animator") == 0, "passed over")
    assert stream.events("animation-ready") == []
    order = {
        "video_uri": "alone.mp4",
        "run_id": "run of the worker",
        "submitted_at": "2026-11-24T09:30:00Z",
        "tracks": {"uri": "tracks/later.npz", "format": "streamproc"},
    }
    stream.send(
        "tracks-ready",
        (b"k", json.dumps(order).encode()),
        (b"k", json.dumps(order | {"options": {"animate": False}}).encode()),
        (b"k", b'{"video_uri": "alone.mp4"}'),
    )
    stream.eventually(lambda: len(stream.dead()) == 2, "dead letters")
    assert {(dead["service"], dead["error_code"]) for dead in stream.dead()} == {
        ("animator", "bad-tracks"),
        ("animator", "bad-event"),
    }
    stream.eventually(lambda: stream.lag("animator", "tracks-ready") == 0, "lag 0")
    (stream.media / "tracks").mkdir()
    (stream.media / "tracks/later.npz").symlink_to("../a.persons.npz")
    assert stream.cli("dead-letters", "replay", "--code", "bad-tracks").returncode == 0
    stream.eventually(lambda: len(animations(stream)) == 6, "animations")
    assert {event["run_id"] for event in stream.events("animation-ready")} == {"run of the worker"}


def test_an_event_says_how_people_are_found(stream, tmp_path):
    """Its options go before the worker's settings, and name no file of the worker's machine."""
    stream = stream(detector__model=str(small_detectors.yolox(tmp_path / "small.onnx")))
    write_squares(stream.media / "walk.mp4", 60, [(3, 20), (40, 57)])
    stream.start("worker", script="worker_that_is_slow.py")
    (stream.media / "given.mp4").write_bytes((stream.media / "walk.mp4").read_bytes())
    (stream.media / "given.persons.npz").symlink_to("a.persons.npz")
    submit = ("submit", str(stream.media / "given.mp4"), "--json")
    asked = stream.cli(*submit, "--detect", "--option", "tracker.lost_seconds=0.5")
    assert json.loads(asked.stdout)["options"]["detector"] == {"enabled": True}
    for bad in ("tracker.lost=5", "top_persons", "detector.input_size=33"):
        refused = stream.cli(*submit, "--option", bad)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    assert stream.cli(*submit, "--detect", "--persons", "x.npz").returncode == 2
    submitted_at = "2026-11-24T09:30:00Z"
    stream.announce("walk.mp4", submitted_at=submitted_at)
    stream.announce("given.mp4", options={"detector": {"model": "/etc/passwd", "enabled": True}})
    tracks = {"uri": "a.persons.npz"}
    stream.announce("given.mp4", options={"detector": {"enabled": True}}, tracks=tracks)
    stream.announce("walk.mp4", options={"detector": {"enabled": False}})
    stream.eventually(lambda: len(stream.dead()) == 3, "dead letters")
    stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")
    codes = sorted(dead["error_code"] for dead in stream.dead())
    assert codes == ["bad-event", "bad-event", "bad-tracks"]
    found = {event["video_uri"]: event for event in stream.events("tracks-ready")}
    assert found.keys() == {"walk.mp4", "given.mp4"}
    assert found["given.mp4"]["options"]["tracker"] == {"lost_seconds": 0.5}
    persons = [e for e in stream.events("person-embeddings") if e["kind"] == "person"]
    assert Counter(e["video_id"] for e in persons).keys() == {video_id_of(name) for name in found}
    # The same with another setting is another run.
    stream.announce("walk.mp4", submitted_at=submitted_at, options={"tracker": {"lost_seconds": 9}})
    stream.eventually(lambda: len(stream.events("tracks-ready")) == 3, "found again")
    runs = [e["run_id"] for e in stream.events("tracks-ready") if e["video_uri"] == "walk.mp4"]
    assert len(set(runs)) == 2
    warned = [e for e in stream.events("video-progress") if e["state"] == "running"]
    assert {w["code"] for event in warned for w in event["warnings"]} == {"time-limit"}
    assert Counter(e["video_id"] for e in warned if e["warnings"])[video_id_of("given.mp4")] == 1


def test_a_run_that_takes_over_from_a_killed_one_holds_alone(stream, tmp_path):
    """A worker dies after the first person; the next one's boxes lie 1 px beside: only they stay.

    The second run has the smaller id, so it holds as it was begun later, not by its id.
    """
    stream = stream()
    write_squares(stream.media / "walk.mp4", 80, [(3, 20), (50, 67)])
    runs = {}
    for offset_px in (0, 1):
        path = tmp_path / f"by-{offset_px}.onnx"
        # A pixel of the network is three of the video.
        network = str(small_detectors.yolox(path, offset_px=offset_px / 3))
        alone = replay(stream.media / "walk.mp4", detector__model=network)
        assert len(alone.person_ids) >= 2
        runs[alone.summary["videos"][0]["run_id"]] = (network, alone)
    second_id, first_id = sorted(runs)
    stream.start("matcher")
    first = stream.start(
        "worker", script="worker_that_hangs_midway.py", detector__model=runs[first_id][0]
    )
    stream.announce("walk.mp4")
    stream.eventually(lambda: stream.events("person-embeddings"), "its first person")
    first.kill()
    network, expected = runs[second_id]
    stream.start("worker", detector__model=network, ready=False)
    stream.start("animator")
    stream.eventually(lambda: done(stream, "walk.mp4"), "done by the next")
    said = stream.events("person-embeddings")
    of_first = [event for event in said if event["run_id"] == first_id]
    of_second = said[len(of_first) :]
    assert said[: len(of_first)] == of_first != []
    assert {event["run_id"] for event in of_second} == {second_id}
    assert len(of_second) == len(expected.person_ids) + 1
    assert of_first[0]["submitted_at"] == of_second[0]["submitted_at"]
    assert of_first[0]["started_at"] < of_second[0]["started_at"]
    assert standing(stream) == pytest.approx(similarities(expected), abs=1e-5)
    held = services.get(f"{stream.services[0].url}/galleries/{video_id_of('walk.mp4')}/similarity")
    assert set(held["person_keys"]) == {event["person_key"] for event in of_second[:-1]}
    count = len(expected.person_ids)
    stream.eventually(lambda: len(animations(stream)) == count, "animations")
    assert {event["run_id"] for event in stream.events("animation-ready")} == {second_id}
    assert not stream.dead()
