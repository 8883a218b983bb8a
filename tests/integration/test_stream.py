"""The whole stream on a real broker: what replay finds, the stream finds; whatever is killed, nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict

import kafka
import pytest
import services
from services import eventually

from streamproc import replay
from streamproc.ids import video_id_of

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
    found = {}
    if gallery is None:
        for video in videos:
            found |= {c.candidate_id: c.similarity for c in replay(video).candidates}
    else:
        found = {c.candidate_id: c.similarity for c in replay(videos, gallery=gallery).candidates}
    return found


def animations(stream) -> dict[str, str]:
    """person_key to state, the newest word."""
    return {event["person_key"]: event["state"] for event in stream.events("animation-ready")}


def assert_repeats_only(stream) -> None:
    """Whatever was said twice is the same event: the same pair in the same state never with two contents.

    A probability is content: it changes where a gallery's next video is closed.
    """
    said = defaultdict(set)
    for event in stream.events("duplicate-candidates"):
        runs = tuple(person["run_id"] for person in event["persons"])
        content = (event["candidate_id"], runs, event["similarity"], event.get("probability"))
        said[content].add((event["event_id"], event["state"]))
    assert all(
        len(ids) <= 2 for ids in said.values()
    )  # proposed, and updated where a run came again


def test_replay_and_stream_give_the_same_candidates(stream):
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
    eventually(lambda: done(stream, "a.mp4", "b.mp4", "c.mp4"), "done")
    expected = undisturbed(stream, ("a.mp4", "b.mp4", "c.mp4"), gallery="lobby")
    found = standing(stream)
    assert found.keys() == expected.keys()
    assert len(found) > 3
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    assert all(json.loads(line)["gallery_id"] == "lobby" for line in watched.stdout.splitlines())
    eventually(lambda: len(animations(stream)) == 18, "animations")
    assert set(animations(stream).values()) == {"ready"}
    assert len(list(stream.media.glob("animations/*/*/person_*.webp"))) == 18


def test_the_research_clip_gives_the_same_candidates_both_ways(stream, shared):
    stream = stream()
    data, weights = shared / "data", str(shared / "models" / "osnet_x0_25_msmt17.czqosu.onnx")
    (stream.media / "vtest.avi").symlink_to(data / "videos" / "vtest.avi")
    video, tracks = (
        data / "videos" / "vtest.avi",
        data / "persons" / "PETS09-S2L1.canonical_persons.npz",
    )
    (stream.media / "copy.avi").write_bytes(video.read_bytes())
    (stream.media / "copy.npz").write_bytes(tracks.read_bytes())
    for name in ("worker", "matcher"):
        stream.start(name, clustering__osnet_model=weights)
    stream.announce("copy.avi", tracks={"uri": "copy.npz"})
    # A link that leads out of the media root is no file under it.
    stream.announce("vtest.avi", tracks={"uri": "copy.npz"})
    eventually(lambda: done(stream, "copy.avi") and stream.dead(), "done")
    result = replay(
        stream.media / "copy.avi",
        persons=stream.media / "copy.npz",
        clustering__osnet_model=weights,
    )
    expected = {c.candidate_id: c.similarity for c in result.candidates}
    found = standing(stream)
    assert found.keys() == expected.keys()
    assert len(found) >= 12
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    assert [reason["error_code"] for reason in stream.dead()] == ["bad-video"]


def test_the_animator_dies_and_is_slow_and_stops_nothing(stream):
    stream = stream()
    stream.start("worker")
    stream.start("matcher")
    animator = stream.start("animator")
    animator.process.send_signal(signal.SIGSTOP)
    for name in "abcd":
        stream.announce(f"{name}.mp4")
    eventually(
        lambda: done(stream, *(f"{name}.mp4" for name in "abcd")), "done without the animator"
    )
    animator.process.send_signal(signal.SIGCONT)
    animator.kill()
    stream.start("animator", ready=False)
    eventually(lambda: len(animations(stream)) == 24, "animations in the end")
    assert not stream.dead()


ONE_FAILS = """
import itertools, sys
from streamproc.services import animator
real, calls = animator.encode_webp, itertools.count()
def encode_webp(crops, **options):
    if next(calls) == 0:
        raise ValueError("no picture")
    return real(crops, **options)
animator.encode_webp = encode_webp
from streamproc.cli import main
sys.argv = ["streamproc", sys.argv[1]]
main()
"""


def test_an_animation_that_cannot_be_made_is_announced_as_failed(stream):
    stream = stream()
    stream.start("animator", code=ONE_FAILS)
    stream.announce("a.mp4")
    eventually(lambda: len(animations(stream)) == 6, "six persons spoken of")
    assert sorted(animations(stream).values()) == ["failed", *["ready"] * 5]
    (failed,) = [event for event in stream.events("animation-ready") if event["state"] == "failed"]
    assert failed["error"] == {"code": "not-made", "text": "ValueError: no picture"}
    eventually(lambda: stream.lag("animator") == 0, "lag 0")


@pytest.mark.crash
def test_the_broker_dies_for_fifteen_seconds(tmp_path, sample):
    broker = kafka.start_broker(tmp_path / "kafka")
    stream = services.Stream(broker.bootstrap, tmp_path, "t.", kafka__session_timeout_seconds=10)
    try:
        names = copies(stream, sample, 6)
        assert stream.cli("topics", "create").returncode == 0
        running = [stream.start(name) for name in SERVICES]
        for name in names:
            stream.announce(name, gallery_id="lobby")
        eventually(lambda: stream.events("person-embeddings"), "begun")
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
    """Two workers, two matchers and an animator, one of them killed every few seconds."""
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
            victim = random.choice(
                [service for service in running if service.process.poll() is None]
            )
            victim.kill()
            kills += 1
            next_kill = time.monotonic() + random.uniform(4, 9)
    supervise(stream, running, lambda: done(stream, *names), seconds=600)
    print(f"seed {seed}: {len(names)} videos, {kills} kills")
    assert kills >= 5
    expected = {}
    for gallery in {gallery_of(number) for number in range(len(names))}:
        members = [name for number, name in enumerate(names) if gallery_of(number) == gallery]
        expected |= undisturbed(stream, members, gallery=gallery)
    found = standing(stream)
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], abs=1e-5) for key in found)
    assert_repeats_only(stream)
    assert not stream.dead()
    eventually(lambda: len(animations(stream)) == 6 * len(names), "animations")


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
        if service.process.poll() is not None:
            running[i] = stream.start(service.name, ready=False)


def supervise(stream, running, finished, *, seconds) -> None:
    end = time.monotonic() + seconds
    while not finished():
        assert time.monotonic() < end, "\n".join(f"{s.name}: {s.log[-1500:]}" for s in running)
        revive(stream, running)
        time.sleep(0.5)


def test_dev_runs_all_three_with_a_broker_of_its_own(tmp_path, sample):
    if not isinstance(kafka.broker_source()[1], os.PathLike):
        pytest.skip("needs Kafka's jars, there is " + kafka.broker_source()[0])
    media = tmp_path / "media"
    media.mkdir()
    for name in ("sample.mp4", "sample.persons.npz"):
        (media / name).write_bytes((sample / name).read_bytes())
    home = str(kafka.broker_source()[1].parent)
    environment = os.environ | {"KAFKA_HOME": home, "STREAMPROC_SERVICE__HTTP_PORT": "0"}
    log = (tmp_path / "dev.log").open("wb")
    dev = subprocess.Popen(
        [sys.executable, "-m", "streamproc", "dev", "--media-root", str(media), "--folder", str(tmp_path / "dev")],
        env=environment, stderr=log, cwd=tmp_path,
    )  # fmt: skip
    try:
        eventually(
            lambda: b"streamproc submit" in (tmp_path / "dev.log").read_bytes(), "what to type next"
        )
        said = (tmp_path / "dev.log").read_text()
        bootstrap = (
            next(line for line in said.splitlines() if line.startswith("Kafka at "))
            .split()[2]
            .rstrip(";")
        )
        flags = ["--bootstrap", bootstrap, "--media-root", str(media)]
        product = [sys.executable, "-m", "streamproc"]
        submitted = subprocess.run(
            [*product, "submit", str(media / "sample.mp4"), *flags],
            capture_output=True,
            text=True,
            check=True,
        )
        video_id = submitted.stdout.strip()
        watched = subprocess.run(
            [*product, "watch", "--until-done", video_id, "--from-beginning", *flags],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert f"proposed\t{video_id}/1\t{video_id}/6\t0.99" in watched.stdout
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 0
    finally:
        if dev.poll() is None:
            dev.kill()
        log.close()
    for name in SERVICES:
        assert f"{name} has stopped" in (tmp_path / "dev.log").read_text()
