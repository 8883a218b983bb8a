"""From a person's bucket being full to its candidates on the topic: `stream_latency.py [--videos N]`.

Worker and matcher run as processes on a real broker; nothing else does, and the client only waits, or sends persons of
another gallery to the matcher, so many a second. Each video is the
sample clip with the tracks of two people who are one: when the second bucket is full, its crops are embedded, the
person is sent to the matcher and the candidate comes. Both ends are times of this machine's clock: the bucket's being
handed to the network, noted in the worker, and the candidate record's creation. Beside it, of the same videos: how
much of that the network took for its 8 crops. Between videos half a second passes in which nothing happens.
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
import kafka
from services import Stream, eventually

from streamproc.people import load_tracks
from streamproc.stream.topics import create_topics

PERSONS = (1, 6)
WARM_UP_VIDEOS = 10
IDLE_SECONDS = 0.5
LOAD_HZ = 100

WORKER = r"""
import json, os, sys, time
from streamproc import stages
from streamproc.cli import main

notes = open(os.environ["NOTES"], "a", buffering=1)
submit, embed = stages.EmbedStage.submit, stages.EmbedStage._embed

async def noted_submit(self, bucket):
    notes.write(json.dumps(["full", time.time()]) + "\n")
    return await submit(self, bucket)

async def noted_embed(self, pixels):
    start = time.time()
    vectors = await embed(self, pixels)
    notes.write(json.dumps(["embedded", start, time.time()]) + "\n")
    return vectors

stages.EmbedStage.submit, stages.EmbedStage._embed = noted_submit, noted_embed
sys.argv = ["streamproc", sys.argv[1]]
main()
"""


def two_people(path: Path) -> None:
    """The tracks of `PERSONS` as MOT text."""
    rows = []
    for track in load_tracks(ROOT / "tests" / "sample" / "sample.persons.npz").tracks:
        if track.person_id in PERSONS:
            for frame, (x0, y0, x1, y1) in zip(track.frame_indices, track.boxes_xyxy, strict=True):
                rows.append((frame + 1, track.person_id, f"{x0:.2f},{y0:.2f},{x1 - x0:.2f},{y1 - y0:.2f},1,-1,-1,-1"))
    path.write_text("".join(f"{frame},{person},{rest}\n" for frame, person, rest in sorted(rows)))


def lines_of(notes: Path) -> list[list]:
    return [json.loads(line) for line in notes.read_text().splitlines()]


def embedded(lines: list[list]) -> tuple[float, float, float] | None:
    """When the last bucket was full, and when the network began and ended its crops; None while that is to come."""
    full = [at for what, at, *_ in lines if what == "full"]
    runs = [
        times for what, *times in lines if what == "embedded" and len(full) == len(PERSONS) and times[0] >= full[-1]
    ]
    return (full[-1], *runs[0]) if runs else None


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
    (stream.media / "a.mp4").write_bytes((ROOT / "tests" / "sample" / "sample.mp4").read_bytes())
    two_people(stream.media / "a.mot.txt")
    asyncio.run(create_topics(stream.settings))
    stream.start("worker", code=WORKER)
    stream.start("matcher")


def measure(stream: Stream, notes: Path, numbers: range) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds from full to candidate, and of the network alone, a video each; after the first ones."""
    noted = []
    for number in numbers:
        before = len(lines_of(notes))
        stream.announce("a.mp4", video_id=f"v{number}", gallery_id=f"g{number}")
        eventually(lambda before=before: embedded(lines_of(notes)[before:]), f"video {number}")
        time.sleep(IDLE_SECONDS)
        noted.append(embedded(lines_of(notes)[before:]))
    made = {}
    for record in stream.records("duplicate-candidates"):
        event = json.loads(record.value)
        if event["state"] == "proposed":
            made[event["gallery_id"]] = record.timestamp
    full = [made[f"g{number}"] - 1000 * at for number, (at, *_) in zip(numbers, noted, strict=True)]
    network = [1000 * (end - start) for _, start, end in noted]
    return np.array(full[WARM_UP_VIDEOS:]), np.array(network[WARM_UP_VIDEOS:])


def main() -> None:
    """Start everything, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=60)
    videos = parser.parse_args().videos
    print_machine()
    folder = Path(tempfile.mkdtemp())
    notes = folder / "notes"
    notes.touch()
    broker = kafka.start_broker(Path(tempfile.mkdtemp()))
    stream = Stream(broker.bootstrap, folder, "latency.")
    environment = stream.environment
    stream.environment = lambda **more: environment(**more) | {"NOTES": str(notes)}  # type: ignore[method-assign]
    try:
        start(stream)
        for hz, first in ((0, 0), (LOAD_HZ, 10**6)):
            with others(stream, hz) if hz else nullcontext():
                full, network = measure(stream, notes, range(first, first + WARM_UP_VIDEOS + videos))
            print(f"beside {hz} persons a second" if hz else "unloaded (asked: p50 25 ms, p99 100 ms)")
            for what, values in (("bucket full to candidate", full), ("of it the network", network)):
                p50, p99 = np.percentile(values, (50, 99))
                print(f"  {what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(values)} videos)", flush=True)
    finally:
        stream.close()
        broker.stop()


if __name__ == "__main__":
    main()
