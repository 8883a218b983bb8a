"""The worker as a process, on a real broker.

Long jobs, crashes, rebalances, bad videos, and faults of the machine.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from services import media_server

from streamproc.ids import video_id_of
from streamproc.services.worker import EXIT_WEDGED
from streamproc.tracks import load_tracks, save_tracks
from streamproc.types import Track

PERSONS = 6  # in the sample
POLL_SECONDS = 0.5


def finished(stream, *uris) -> bool:
    """Whether the worker has said its last word on all of them: after `embedded` the closing."""
    last = {event["video_id"]: event["state"] for event in stream.events("video-progress")}
    states = [last.get(video_id_of(uri)) for uri in uris]
    if not all(state in {"embedded", "done", "failed", "cancelled"} for state in states):
        return False
    closed = {video_id for video_id, _ in closings(stream)}
    return all(
        video_id_of(uri) in closed
        for uri, state in zip(uris, states, strict=True)
        if state == "embedded"
    )


def closings(stream) -> list[tuple[str, str]]:
    """The video and the outcome of each closing."""
    return [
        (event["video_id"], event["outcome"])
        for event in stream.events("person-embeddings")
        if event["kind"] == "video-closed"
    ]


def test_videos_come_out_as_persons_then_a_closing(stream):
    """Each video gives its persons and then a closing, with the headers that were asked for."""
    stream = stream()
    worker = stream.start("worker")
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = {
        "video_uri": "a.mp4",
        "gallery_id": "lobby",
        "recorded_at": "2026-11-24T09:00:00Z",
        "camera_id": "north",
    }
    stream.send("video-ready", (None, json.dumps(event).encode()), headers=[("traceparent", trace)])
    stream.send(
        "video-ready", *[(b"x", json.dumps({"video_uri": f"{n}.mp4"}).encode()) for n in "bcd"]
    )
    stream.eventually(lambda: finished(stream, "a.mp4", "b.mp4", "c.mp4", "d.mp4"), "all embedded")

    mine = [record for record in stream.records("person-embeddings") if record.key == b"lobby"]
    bodies = [json.loads(record.value) for record in mine]
    assert [body["kind"] for body in bodies] == ["person"] * PERSONS + ["video-closed"]
    assert bodies[-1]["person_ids"] == sorted(body["person_id"] for body in bodies[:-1])
    assert all(body["camera_id"] == "north" and body["recorded_at"] for body in bodies[:-1])
    headers = dict(mine[0].headers)
    assert headers["traceparent"] == trace
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"].decode() == bodies[0]["event_id"]
    assert headers["ce_type"] == b"streamproc.person-embeddings.v1"
    assert len(closings(stream)) == 4
    assert stream.states(video_id_of("b.mp4"))[0] == "accepted"
    (embedded,) = [
        record
        for record in stream.records("video-progress")
        if record.key == video_id_of("a.mp4").encode() and b'"state":"embedded"' in record.value
    ]
    # Else the matcher's `done` could come before it.
    assert embedded.timestamp <= mine[-1].timestamp
    stream.eventually(lambda: worker.metrics()["streamproc_lag"] == 0, "lag 0")
    metrics = worker.metrics()
    assert metrics['streamproc_videos_total{outcome="done"}'] == 4
    assert metrics["streamproc_persons_total"] == 4 * PERSONS
    assert metrics["streamproc_batch_buckets_total"] == 4 * PERSONS
    a_track_of_two_people_comes_in_parts(stream)
    assert worker.stop() == 0


def a_track_of_two_people_comes_in_parts(stream):
    """It is announced as suspect, and the closing names its parts."""
    own = {one.person_id: one for one in load_tracks(stream.media / "a.persons.npz").tracks}
    pieces = [(own[3], own[3].frame_indices < 74), (own[5], own[5].frame_indices >= 74)]
    mixed = Track(
        7,
        np.concatenate([track.frame_indices[rows] for track, rows in pieces]),
        np.concatenate([track.boxes_xyxy[rows] for track, rows in pieces]),
        np.concatenate([track.confidences[rows] for track, rows in pieces]),
    )
    save_tracks(stream.media / "mixed.npz", (mixed,))
    event = {"video_uri": "a.mp4", "video_id": "mixed", "tracks": {"uri": "mixed.npz"}}
    stream.send("video-ready", (None, json.dumps(event).encode()))
    stream.eventually(lambda: ("mixed", "done") in closings(stream), "both parts")
    (suspect,) = stream.events("track-suspects")
    assert (suspect["person_key"], suspect["frame_index"]) == ("mixed/7", 74)
    bodies = [one for one in stream.events("person-embeddings") if one["video_id"] == "mixed"]
    keys = ["mixed/7#1", "mixed/7#2"]
    assert [one.get("person_key") for one in bodies] == [*keys, None]
    assert (bodies[-1]["person_ids"], bodies[-1]["person_keys"]) == ([], keys)


@pytest.mark.long
def test_a_job_longer_than_the_poll_interval_is_done_once(stream, sample):
    """A job of ten poll intervals is not begun twice: the worker polls while it works."""
    stream = stream(kafka__max_poll_interval_seconds=POLL_SECONDS)
    with media_server(sample) as server:
        worker = stream.start("worker", remote__allowed_hosts=server.host)
        stream.announce(f"http://{server.host}/sample.mp4", tracks={"uri": "a.persons.npz"})
        stream.eventually(lambda: server.gets, "download begun")
        time.sleep(10 * POLL_SECONDS)  # what is asked for: a job that takes so long
        assert len(server.gets) == 1
        assert closings(stream) == []
        server.gate.set()
        stream.eventually(lambda: closings(stream), "done")
        assert len(server.gets) == 1
    assert [state for state in stream.states() if state == "accepted"] == ["accepted"]
    stream.eventually(lambda: stream.lag("worker") == 0, "committed")
    assert worker.stop() == 0


def test_bad_videos_and_broken_events_are_dead_letters_and_harm_no_other(stream):
    """Whatever cannot be done becomes a dead letter with its reason, and a good video is done."""
    stream = stream()
    (stream.media / "text.mp4").write_text("not a video")
    (stream.media / "text.persons.npz").write_bytes((stream.media / "a.persons.npz").read_bytes())
    (stream.media / "alone.mp4").write_bytes((stream.media / "a.mp4").read_bytes())
    stream.start("worker", detector__enabled="false")
    one_tracks_file = b'"tracks": {"uri": "a.persons.npz"}'
    bad = {
        b"{": "bad-event",
        b"\xff\xfe": "bad-event",
        b'{"video_uri": 5}': "bad-event",
        b'{"video_uri": "a.mp4", "schema_version": 2}': "bad-event",
        b'{"video_uri": "text.mp4"}': "bad-video",
        b'{"video_uri": "missing.mp4", %b}' % one_tracks_file: "bad-video",
        b'{"video_uri": "alone.mp4"}': "bad-tracks",
        b'{"video_uri": "../../etc/hostname", %b}' % one_tracks_file: "bad-video",
        b'{"video_uri": "http://127.0.0.1:1/x.mp4", %b}' % one_tracks_file: "bad-video",
        b'{"video_uri": "b.mp4", "tracks": {"uri": "c.mp4"}}': "bad-tracks",
        b'{"video_uri": "a.mp4", "video_sha256": "' + b"0" * 64 + b'"}': "bad-video",
    }
    stream.send(
        "video-ready",
        *[(b"k", value) for value in bad],
        (b"k", None),
        (b"k", b'{"video_uri": "d.mp4"}'),
    )
    stream.eventually(lambda: len(stream.dead()) == len(bad) + 1, "dead letters")
    stream.eventually(
        lambda: finished(stream, "d.mp4") and stream.lag("worker") == 0, "the good one done, lag 0"
    )
    codes = sorted(reason["error_code"] for reason in stream.dead())
    assert codes == sorted([*bad.values(), "bad-event"])
    assert closings(stream) == [(video_id_of("d.mp4"), "done")]
    letter = next(
        record for record in stream.records("dead-letters") if b"text.mp4" in (record.value or b"")
    )
    assert letter.value == b'{"video_uri": "text.mp4"}'
    assert "text.mp4" in dict(letter.headers)["dlq_error_text"].decode()
    assert stream.states(video_id_of("text.mp4"))[-1] == "failed"


def test_a_header_of_a_megabyte_stops_no_worker(stream):
    """A `traceparent` that is none goes no further, so the events of its video are taken."""
    stream = stream()
    worker = stream.start("worker")
    long_header = [("traceparent", b"a" * 1_000_000)]
    stream.send("video-ready", (b"k", b'{"video_uri": "a.mp4"}'), headers=long_header)
    stream.announce("b.mp4")
    stream.eventually(lambda: finished(stream, "a.mp4", "b.mp4"), "both done")
    assert not stream.dead()
    assert len(closings(stream)) == 2
    assert worker.stop() == 0


@pytest.mark.long
def test_a_video_that_kills_the_process_is_given_up_and_takes_no_other_with_it(stream):
    """At the third death a video is a dead letter, and the videos beside it are done."""
    stream = stream(jobs__videos_at_once=3)
    for suffix in ("mp4", "persons.npz"):
        (stream.media / f"killer.{suffix}").write_bytes((stream.media / f"a.{suffix}").read_bytes())
    names = ("a", "killer", "b", "c", "d")
    stream.send(
        "video-ready",
        *[(b"one partition", json.dumps({"video_uri": f"{n}.mp4"}).encode()) for n in names],
    )
    deaths = 0
    worker = stream.start("worker", script="worker_killed_by_a_video.py", ready=False)
    while not finished(stream, *(f"{name}.mp4" for name in names)):
        if worker.has_ended():
            deaths += 1
            assert deaths < 6, worker.log
            worker = stream.start("worker", script="worker_killed_by_a_video.py", ready=False)
    assert deaths == 3
    (reason,) = stream.dead()
    assert (reason["error_code"], reason["attempts"]) == ("killed-the-process", "3")
    assert {video_id for video_id, _ in closings(stream)} == {
        video_id_of(f"{name}.mp4") for name in "abcd"
    }
    stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")
    assert set(stream.committed("worker").values()) == {(5, "")}


def test_cancelled_videos_stop_begun_or_not(stream, sample):
    """A cancelled video stops, begun or not, and is done when it is submitted again."""
    stream = stream()
    with media_server(sample) as server:
        uri = f"http://{server.host}/sample.mp4"
        assert stream.cli("cancel", video_id_of("b.mp4"), "--reason", "wrong file").returncode == 0
        stream.announce("b.mp4", submitted_at="2026-01-01T00:00:00Z")  # before the cancellation
        stream.announce(uri, tracks={"uri": "a.persons.npz"})
        stream.announce("c.mp4")
        stream.start("worker", remote__allowed_hosts=server.host)
        stream.eventually(lambda: server.gets and finished(stream, "b.mp4", "c.mp4"), "running")
        assert stream.cli("cancel", video_id_of(uri)).returncode == 0
        stream.eventually(
            lambda: stream.states(video_id_of(uri))[-1:] == ["cancelled"], "cancelled"
        )
        stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")
        # Submitted again after its cancellation, a video is wanted again.
        server.gate.set()
        stream.announce(uri, tracks={"uri": "a.persons.npz"})
        stream.eventually(
            lambda: stream.states(video_id_of(uri))[-1:] == ["embedded"], "done after all"
        )
    assert stream.states(video_id_of("b.mp4")) == ["cancelled"]
    assert not stream.dead()


def test_a_video_that_takes_longer_than_its_limit_is_given_up(stream, sample):
    """A download or a decode beyond the video's time limit becomes a dead letter."""
    stream = stream()
    with media_server(sample) as server:
        stream.start("worker", remote__allowed_hosts=server.host)
        limit = {"options": {"time_limit_seconds": 0.5}, "tracks": {"uri": "a.persons.npz"}}
        stream.announce(f"http://{server.host}/sample.mp4", **limit)
        stream.announce("a.mp4", options={"time_limit_seconds": 0.05})
        stream.eventually(lambda: len(stream.dead()) == 2, "given up")
    assert {reason["error_code"] for reason in stream.dead()} == {"time-limit"}
    assert all(outcome == "failed" for _, outcome in closings(stream))
    stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")


def test_a_fault_of_the_machine_is_retried_and_loses_nothing(stream, sample):
    """A media server that answers 503 three times costs three retries, not the video."""
    stream = stream(remote__attempts=1)
    with media_server(sample) as server:
        server.gate.set()
        server.failing = 3
        stream.start("worker", remote__allowed_hosts=server.host)
        uri = f"http://{server.host}/sample.mp4"
        stream.announce(uri, tracks={"uri": "a.persons.npz"})
        stream.eventually(lambda: finished(stream, uri), "done")
    states = stream.states(video_id_of(uri))
    assert states.count("retrying") == 3
    assert states[-1] == "embedded"
    assert not stream.dead()


def test_sigterm_gives_up_a_long_job_without_counting_it(stream, sample):
    """A job that outlasts the grace period is left to the next worker as its first attempt."""
    stream = stream(service__grace_seconds=4)
    with media_server(sample) as server:
        uri = f"http://{server.host}/sample.mp4"
        worker = stream.start("worker", remote__allowed_hosts=server.host)
        stream.announce(uri, tracks={"uri": "a.persons.npz"})
        stream.eventually(lambda: server.gets, "running")
        assert worker.stop(seconds=20) == 0
        assert {metadata for offset, metadata in stream.committed("worker").values()} == {""}
        server.gate.set()
        stream.start("worker", remote__allowed_hosts=server.host)
        stream.eventually(lambda: finished(stream, uri), "done by the next")
    attempts = {e["attempt"] for e in stream.events("video-progress")}
    assert attempts == {1}
    assert len(closings(stream)) == 1


def test_a_worker_killed_in_the_middle_is_replaced_and_the_run_is_the_same(stream, sample):
    """The next worker does the video of a killed one under the same run id."""
    stream = stream()
    with media_server(sample) as server:
        uri = f"http://{server.host}/sample.mp4"
        worker = stream.start("worker", remote__allowed_hosts=server.host)
        stream.announce(uri, tracks={"uri": "a.persons.npz"})
        stream.announce("b.mp4")
        stream.eventually(lambda: server.gets, "running")
        worker.kill()
        server.gate.set()
        stream.start("worker", remote__allowed_hosts=server.host, ready=False)
        stream.eventually(lambda: finished(stream, uri, "b.mp4"), "done by the next")
    persons = [
        e
        for e in stream.events("person-embeddings")
        if e["kind"] == "person" and e["video_id"] == video_id_of(uri)
    ]
    assert len({e["run_id"] for e in persons}) == 1
    assert {e["person_id"] for e in persons} == set(range(1, PERSONS + 1))
    assert not stream.dead()


@pytest.mark.long
def test_members_join_and_leave_and_no_running_job_is_restarted_whose_partition_stayed(
    stream, sample
):
    """While a second worker comes and goes, only the jobs of moved partitions begin again."""
    stream = stream(jobs__videos_at_once=4)
    names = [f"{letter}.mp4" for letter in "abcd"]
    with media_server(stream.media) as server:
        first = stream.start("worker", remote__allowed_hosts=server.host)
        uris = [f"http://{server.host}/{name}" for name in names]
        for number, uri in enumerate(uris):
            value = json.dumps({"video_uri": uri, "tracks": {"uri": "a.persons.npz"}}).encode()
            stream.send("video-ready", (None, value), partition=number)
        stream.eventually(lambda: len(server.gets) == 4, "four jobs, one a partition")
        second = stream.start("worker", remote__allowed_hosts=server.host, service__grace_seconds=2)
        stream.eventually(
            lambda: len(server.gets) == 6, "two of them moved"
        )  # sticky: two stay with the first
        assert second.stop() == 0
        stream.eventually(lambda: len(server.gets) == 8, "and came back")
        stayed = [name for name in names if server.gets.count(name) == 1]
        server.gate.set()
        stream.eventually(lambda: finished(stream, *uris), "all done")
        assert len(stayed) == 2, server.gets
        assert sorted(set(server.gets)) == names
    stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")
    assert sorted(closings(stream)) == sorted((video_id_of(uri), "done") for uri in uris)
    assert not stream.dead()
    assert first.stop() == 0


def test_a_worker_refuses_to_start_on_wrong_partition_counts(stream):
    """A topic with another number of partitions than set is a usage error in one line."""
    stream = stream()
    worker = stream.start("worker", ready=False, topics__video_ready__partitions=5)
    assert worker.wait() == 2
    assert "expected 5 partitions, found 4; set topics.video_ready.partitions to 4" in worker.log
    assert "Traceback" not in worker.log


def test_where_nothing_may_be_declared_services_only_check(stream):
    """With `kafka.declare` off a missing topic is a usage error that names the remedy."""
    stream = stream(kafka__declare="false")
    worker = stream.start("worker")  # all is there
    assert worker.stop() == 0
    worker = stream.start("worker", ready=False, kafka__topic_prefix="nobody.made.these.")
    assert worker.wait() == 2
    assert (
        "topic nobody.made.these.video-ready: missing; `streamproc topics create` makes it"
        in worker.log
    )


def test_a_decoder_that_hangs_ends_the_process_which_counts_as_a_start(stream):
    """A hanging decoder ends the process, and the commit's metadata count the start.

    No thread can be stopped from outside, and the next process must know of it.
    """
    stream = stream()
    worker = stream.start("worker", script="worker_with_a_hanging_decoder.py")
    stream.announce("a.mp4", options={"time_limit_seconds": 0.5})
    assert worker.wait() == EXIT_WEDGED
    assert [metadata for _, metadata in stream.committed("worker").values() if metadata] == [
        '{"starts":{"0":1}}'
    ]


def test_logs_name_the_video_the_gallery_and_the_run(stream):
    """JSON log lines of a video carry its id, its gallery and its run."""
    stream = stream(service__log_format="json")
    worker = stream.start("worker", ready=False)
    stream.announce("a.mp4", gallery_id="lobby")
    stream.eventually(lambda: finished(stream, "a.mp4"), "embedded")
    assert worker.stop() == 0
    lines = [json.loads(line) for line in worker.log.splitlines()]
    (done,) = [line for line in lines if line["message"].startswith("done: ")]
    run_id = stream.events("person-embeddings")[0]["run_id"]
    assert (done["service"], done["level"]) == ("worker", "info")
    assert (done["video_id"], done["gallery_id"], done["run_id"]) == (
        video_id_of("a.mp4"),
        "lobby",
        run_id,
    )
