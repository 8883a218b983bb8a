"""What the services take from Kafka, on a real broker: records as any client may send them."""

from __future__ import annotations

import json

import pytest
from test_worker import finished

from streamproc.ids import video_id_of


def announcement(uri: str, **fields: object) -> bytes:
    """Return the value of a record that announces a video."""
    return json.dumps({"video_uri": uri, **fields}).encode()


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
def test_a_compressed_record_is_taken(stream, compression):
    """Worker and matcher read what a producer has compressed, in each way that Kafka has."""
    stream = stream()
    labels = {"note": "z" * 1000}  # what is not worth it is not compressed
    value = announcement("a.mp4", labels=labels)
    stream.send("video-ready", (b"k", value), compression=compression)
    stream.start("worker")
    stream.eventually(lambda: finished(stream, "a.mp4"), "embedded")
    # The worker's own events are not compressed, so they are sent once more as if they were.
    records = [(record.key, record.value) for record in stream.records("person-embeddings")]
    again = [(key, value.replace(b"a.mp4", b"b.mp4")) for key, value in records]
    stream.send("person-embeddings", *again, compression=compression)
    stream.start("matcher")
    stream.eventually(lambda: "done" in stream.states(), "done")
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
