"""What the services take from Kafka, on a real broker: records as any client may send them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest
from processes import eventually
from test_worker import finished

from streamproc.ids import video_id_of
from streamproc.kafka.topics import create_topics


def announcement(uri: str, **fields: object) -> bytes:
    """Return the value of a record that announces a video."""
    return json.dumps({"video_uri": uri, **fields}).encode()


def test_compressed_records_are_taken(stream):
    """Worker and matcher read what a producer has compressed, in each way that Kafka has."""
    stream = stream()
    ways = {"a": "gzip", "b": "lz4", "c": "snappy", "d": "zstd"}
    labels = {"note": "z" * 1000}  # what is not worth it is not compressed
    for name, compression in ways.items():
        value = announcement(f"{name}.mp4", labels=labels)
        stream.send("video-ready", (b"k", value), compression=compression)
    stream.start("worker")
    stream.eventually(lambda: finished(stream, *(f"{name}.mp4" for name in ways)), "embedded")
    # The worker's own events are not compressed, so they are sent once more as if they were.
    for name, compression in ways.items():
        own = video_id_of(f"{name}.mp4").encode()
        again = [
            (b"again" + name.encode(), value.replace(own, b"again" + name.encode()))
            for key, value in (
                (record.key, record.value) for record in stream.records("person-embeddings")
            )
            if key == own
        ]
        stream.send("person-embeddings", *again, compression=compression)
    stream.start("matcher")
    for name in ways:
        stream.eventually(lambda name=name: "done" in stream.states(f"again{name}"), name)
    stream.eventually(lambda: stream.lag("matcher", "person-embeddings") == 0, "all taken")


def test_a_record_of_an_aborted_transaction_was_never_sent(stream):
    """Neither worker nor matcher takes what a producer has taken back, and both go on after it."""
    stream = stream()
    stream.send_in_transaction("video-ready", (b"k", announcement("a.mp4")), aborted=True)
    stream.send_in_transaction("person-embeddings", (b"k", b"no event"), aborted=True)
    worker = stream.start("worker")
    stream.start("matcher")
    stream.send("video-ready", (b"k", announcement("b.mp4", gallery_id="k")))
    stream.eventually(lambda: "done" in stream.states(video_id_of("b.mp4")), "the other is done")
    assert not stream.states(video_id_of("a.mp4"))
    assert not stream.dead()
    stream.eventually(lambda: worker.metrics()["streamproc_lag"] == 0, "lag 0")


def test_the_end_of_a_transaction_is_no_lag(stream):
    """Offsets at the end of a topic that are no records do not count as waiting videos."""
    stream = stream()
    worker = stream.start("worker")
    stream.send_in_transaction("video-ready", (b"k", announcement("a.mp4")))
    stream.send_in_transaction("video-ready", (b"k", announcement("b.mp4")), aborted=True)
    stream.eventually(lambda: finished(stream, "a.mp4"), "embedded")
    stream.eventually(lambda: worker.metrics()["streamproc_lag"] == 0, "lag 0")


def test_a_server_that_is_away_holds_nobody_up_and_is_given_up(stream):
    """A video whose server does not answer is tried some times, while others are done."""
    stream = stream(remote__attempts=1, jobs__fault_attempts=3, jobs__videos_at_once=1)
    nowhere = "http://127.0.0.1:9/x.mp4"
    stream.start("worker", remote__allowed_hosts="127.0.0.1:9")
    stream.announce(nowhere, tracks={"uri": "a.persons.npz"})
    for name in "abcd":
        stream.announce(f"{name}.mp4")
    stream.eventually(lambda: finished(stream, *(f"{n}.mp4" for n in "abcd")), "the others")
    stream.eventually(lambda: stream.states(video_id_of(nowhere))[-1:] == ["failed"], "given up")
    (reason,) = stream.dead()
    assert (reason["error_code"], reason["attempts"]) == ("machine", "3")
    assert stream.states(video_id_of(nowhere)).count("retrying") == 2
    stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")


def test_a_topic_that_is_made_again_is_read_within_seconds(stream):
    """While `video-ready` is missing the worker says so, and it takes what a new one brings."""
    stream = stream()
    worker = stream.start("worker")
    stream.announce("a.mp4")
    stream.eventually(lambda: finished(stream, "a.mp4"), "the first")
    stream.delete_topic("video-ready")
    stream.eventually(lambda: "missing" in str(worker.not_ready_because), "not ready")
    asyncio.run(create_topics(stream.settings))
    stream.announce("b.mp4")
    stream.eventually(lambda: finished(stream, "b.mp4"), "the second", seconds=20)
    assert worker.is_ready


def test_a_topic_made_again_at_once_is_read_from_its_beginning(stream):
    """Offsets that begin anew are no repeats: what was read of the old topic says nothing of it."""
    stream = stream(topics__video_ready__partitions=1)
    stream.start("worker")
    for name in "abc":
        stream.announce(f"{name}.mp4")
    stream.eventually(lambda: finished(stream, "a.mp4", "b.mp4", "c.mp4"), "the first")
    stream.delete_topic("video-ready")
    asyncio.run(create_topics(stream.settings))
    stream.announce("d.mp4")
    stream.eventually(lambda: finished(stream, "d.mp4"), "the last", seconds=40)


def test_junk_is_passed_over_a_thousand_a_second_and_delays_no_video(stream):
    """5,000 records that are no events become dead letters while a video behind them is done."""
    stream = stream(topics__video_ready__partitions=1)
    junk = [(b"k", b"junk %d" % number) for number in range(5000)]
    stream.send("video-ready", *junk, (b"k", announcement("a.mp4")))
    worker = stream.start("worker")
    stream.eventually(lambda: finished(stream, "a.mp4"), "the video")
    stream.eventually(lambda: stream.lag("worker") == 0, "lag 0")
    letters = stream.records("dead-letters")
    assert len(letters) == len(junk)
    assert worker.metrics()['streamproc_dead_letters_total{code="bad-event"}'] == len(junk)
    taken_ms = letters[-1].timestamp - letters[0].timestamp
    print(f"{len(junk)} records in {taken_ms} ms")


@pytest.mark.parametrize("turn", range(int(os.environ.get("STREAMPROC_TEST_STOPS", "1"))))
def test_a_second_signal_ends_every_service_at_once(stream, turn):
    """In the middle of their work worker, matcher and animator end with exit code 143.

    One that was done before the second signal came has ended by the first, with exit code 0.
    """
    stream = stream()
    names = ("worker", "matcher", "animator")
    processes = [stream.start(name, service__http_port=0) for name in names]
    for name in "abcd":
        stream.announce(f"{name}.mp4", gallery_id="lobby")
    stream.eventually(lambda: "running" in stream.states(), "work")
    for process in processes:
        process.send(signal.SIGTERM)
        eventually(lambda one=process: "stopping" in one.log, "heard", processes=[process])
        sent_seconds = time.monotonic()
        process.send(signal.SIGTERM)
        code = process.wait(seconds=10)
        assert code == 143 or (code == 0 and "has stopped" in process.log), process.log
        took_seconds = time.monotonic() - sent_seconds
        print(f"turn {turn}: {process.name} ended with {code} after {took_seconds:.2f} s")
