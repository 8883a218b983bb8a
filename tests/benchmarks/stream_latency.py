"""From a person's bucket being full to its candidates on the topic.

    stream_latency.py [--videos N]

Worker and matcher run as processes on a real broker; nothing else does, and the client only waits,
or sends persons of another gallery to the matcher, so many a second. Each video is the sample clip
with the tracks of two people who are one: when the second bucket is full, those of its crops that
were not embedded ahead are embedded, the person is sent to the matcher and the candidate comes.
Both ends are times of this machine's clock: the bucket's being handed to the network, noted in the
worker, and the candidate record's creation. Beside it, of the same videos: the time from the
video's announcement, which must not rise for it, how much it was until the bucket had its 8
vectors, how much from the person's event to the candidate, and how many of the crops had been
embedded ahead. Between videos half a second passes in which nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaProducer
from common import ROOT, print_machine
from matcher_speed import Load

sys.path.insert(0, str(ROOT / "tests"))
import brokers
from services import Stream

from streamproc.kafka.topics import create_topics
from streamproc.tracks import load_tracks

PERSONS = (1, 6)
WARM_UP_VIDEOS = 10
IDLE_SECONDS = 0.5
LOAD_HZ = 100


def two_people(path: Path) -> None:
    """The tracks of `PERSONS` as MOT text."""
    rows = []
    for track in load_tracks(ROOT / "tests" / "sample" / "sample.persons.npz").tracks:
        if track.person_id in PERSONS:
            for frame, (x0, y0, x1, y1) in zip(track.frame_indices, track.boxes_xyxy, strict=True):
                box = f"{x0:.2f},{y0:.2f},{x1 - x0:.2f},{y1 - y0:.2f}"
                rows.append((frame + 1, track.person_id, box))
    lines = [f"{frame},{person},{box},1,-1,-1,-1\n" for frame, person, box in sorted(rows)]
    path.write_text("".join(lines))


def lines_of(notes: Path) -> list[list]:
    """The notes of the worker so far."""
    return [json.loads(line) for line in notes.read_text().splitlines()]


@contextmanager
def others(stream: Stream, hz: int):
    """Meanwhile persons of another gallery come, five at once."""
    ended = threading.Event()

    async def send() -> None:
        load, topic = Load(), f"{stream.settings.kafka.topic_prefix}person-embeddings"
        async with AIOKafkaProducer(bootstrap_servers=list(stream.settings.bootstrap)) as producer:
            while not ended.is_set():
                for value in load.events(5):
                    await producer.send(topic, value, key=b"bench0")
                await asyncio.sleep(5 / hz)

    thread = threading.Thread(target=lambda: asyncio.run(send()))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def start(stream: Stream) -> None:
    """Make the topics, and start a worker that takes notes and a matcher."""
    (stream.media / "a.mp4").write_bytes((ROOT / "tests" / "sample" / "sample.mp4").read_bytes())
    two_people(stream.media / "a.mot.txt")
    asyncio.run(create_topics(stream.settings))
    stream.start("worker", script="worker_that_notes_its_buckets.py")
    stream.start("matcher")


def measure(stream: Stream, notes: Path, numbers: range) -> dict[str, np.ndarray]:
    """The times of each video after the first ones, and how many of 8 crops were ahead."""
    noted: list[list] = []
    announced: list[float] = []
    for number in numbers:
        before = len(lines_of(notes))
        announced.append(time.time())
        stream.announce("a.mp4", video_id=f"v{number}", gallery_id=f"g{number}")
        stream.eventually(
            lambda before=before: len(lines_of(notes)[before:]) == len(PERSONS), f"video {number}"
        )
        time.sleep(IDLE_SECONDS)
        noted.append(lines_of(notes)[-1])
    sent: dict[str, int] = {}
    made: dict[str, int] = {}
    for record in stream.records("person-embeddings"):
        if b'"crops":' in record.value:  # a person, not a video's end
            sent[record.key.decode()] = record.timestamp
    for record in stream.records("duplicate-candidates"):
        event = json.loads(record.value)
        if event["state"] == "proposed":
            made[event["gallery_id"]] = record.timestamp
    _, full, embedded, ahead, crops_ahead, crops_used = np.array(noted).T
    event = np.array([sent[f"g{number}"] for number in numbers])
    candidate = np.array([made[f"g{number}"] for number in numbers])
    ahead_and_used = f"{crops_ahead[-1]:.0f}, chosen of them {crops_used[-1]:.0f}"
    print(f"crops embedded ahead so far: {ahead_and_used}")
    found = {
        "bucket full to candidate, ms": candidate - 1000 * full,
        "video announced to candidate, ms": candidate - 1000 * np.array(announced),
        "of it until its vectors, ms": 1000 * (embedded - full),
        "of it from the person's event, ms": candidate - event,
        "of its 8 crops embedded ahead": ahead,
    }
    return {what: values[WARM_UP_VIDEOS:] for what, values in found.items()}


def main() -> None:
    """Start everything, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=60)
    videos = parser.parse_args().videos
    print_machine()
    folder = Path(tempfile.mkdtemp())
    notes = folder / "notes"
    notes.touch()
    broker = brokers.start_broker(Path(tempfile.mkdtemp()))
    stream = Stream(broker.bootstrap, folder, "latency.")
    stream.variables = {"NOTES": str(notes)}
    try:
        start(stream)
        for hz, first in ((0, 0), (LOAD_HZ, 10**6)):
            with others(stream, hz) if hz else nullcontext():
                found = measure(stream, notes, range(first, first + WARM_UP_VIDEOS + videos))
            unloaded = "unloaded (asked: p50 25 ms, p99 100 ms)"
            print(f"beside {hz} persons a second" if hz else unloaded)
            for what, values in found.items():
                p50, p99 = np.percentile(values, (50, 99))
                print(f"  {what}: p50 {p50:.1f}, p99 {p99:.1f} ({len(values)} videos)", flush=True)
    finally:
        stream.close()
        broker.stop()


if __name__ == "__main__":
    main()
