"""The matcher beside a bare Faust agent, on a broker of its own.

    matcher_speed.py [--quick]
    matcher_speed.py --against COMMIT [--quick] [--runs N]    beside the matcher of an older commit
    matcher_speed.py --closing [--against COMMIT] [--runs N]  what closing a gallery costs
    matcher_speed.py --hold                                   how long a closing holds the loop

The bare agent takes the same events as raw bytes, writes each as a row of the same size
(`table[key] = value`, rocksdict) and does nothing else: no parsing, no comparing, no waiting for
acknowledgements. Each side is a process of its own; numpy has one thread on both.

With --against both commits run their own matcher_speed.py as processes in turn, each with a broker
of its own, and their matchers' times are compared for each size.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from closing import ending, persons
from common import add_comparison, compare_commits, print_machine, run_python

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import brokers
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from persons import closed, person
from services import Stream

from streamproc.kafka.topics import changelog_of
from streamproc.services.matcher.table import EntryKey, now_ms, partition_of

LOAD = """\
Load: persons with vectors of 512 numbers in a cone, as OSNet's are (cosines .45 on average, none of
them above .7 by chance); one in 50 is a noisy copy of another, so that it has a candidate.
Galleries are filled through the changelog, so that what is timed is the event into a gallery of
that size, and the time to read it is the recovery time."""
DIM = 512
SIZES = {100: (20, 3000), 1000: (4, 3000), 10_000: (1, 1500), 100_000: (1, 300)}
"""Rows in each gallery: how many galleries there are, and how many events are timed.

So many galleries, so that they do not grow much.
"""
LATENCY_EVENTS = 300
LATENCY_HZ = 33
COPY_EVERY = 50
LOAD_HZ = 100

# For the processes begun here: BLAS threads spin where cores are shared.
os.environ["OPENBLAS_NUM_THREADS"] = "1"


class Load:
    """Makes person events as bytes, quickly: one template, other vectors and ids."""

    def __init__(self, galleries: int = 1) -> None:
        self.galleries = galleries
        self._rng = np.random.default_rng(7)
        self._centre = self._rng.normal(size=DIM)
        self._last = self._vector()
        crop = {"box_xyxy": [10.5, 20.5, 110.25, 310.75], "quality": 0.75}
        event = json.loads(person(0, np.ones(DIM), gallery_id="GALLERY").to_json())
        event["crops"] = [{"frame_index": 25 * k, "pts_seconds": k} | crop for k in range(8)]
        event["vector"]["data"] = "VECTOR"
        event["person_id"] = 0
        event["person_key"] = "v/ID"
        text = json.dumps(event, separators=(",", ":"))
        self._template = text.replace('"person_id":0', '"person_id":ID')
        self._next = 1
        self._gallery = "bench0"

    def _vector(self) -> np.ndarray:
        vector = self._rng.normal(size=DIM) + 0.9 * self._centre
        return vector / np.linalg.norm(vector)

    def event(self, *, copy: bool = False) -> bytes:
        """The next person; `copy`: it looks like the one before it that was none."""
        gallery = self._gallery if copy else f"bench{self._next % self.galleries}"
        self._gallery = gallery
        if copy:
            vector = self._last + self._rng.normal(0, 0.3 / np.sqrt(DIM), DIM)
            vector /= np.linalg.norm(vector)
        else:
            vector = self._last = self._vector()
        data = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        named = self._template.replace("ID", str(self._next)).replace("GALLERY", gallery)
        made = named.replace("VECTOR", data).encode()
        self._next += 1
        return made

    def events(self, count: int) -> list[bytes]:
        """So many events, of which some repeat an earlier vector."""
        return [self.event(copy=i % COPY_EVERY == COPY_EVERY - 1) for i in range(count)]


def closing(video_id: str, gallery: int) -> bytes:
    """A closing of a video with one person, as JSON."""
    event = closed([1], video_id=video_id)
    return type(event).make(**{**dict(event), "gallery_id": f"bench{gallery}"}).to_json()


class Speed(NamedTuple):
    """Events in a second, and what one costs."""

    per_second: float
    cpu_microseconds: float
    """Processor time of the process an event: what is left where others use the machine too."""

    def __str__(self) -> str:
        return f"{self.per_second:,.0f}/s ({self.cpu_microseconds:.0f} us of processor time each)"


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    """Sends events and reads what comes out, all in one loop."""

    def __init__(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, prefix: str) -> None:
        self._producer, self._consumer, self._prefix = producer, consumer, prefix

    async def send(self, *values: bytes) -> None:
        """Send events, each under its gallery, and wait until Kafka has them."""
        sent = [
            await self._producer.send(
                f"{self._prefix}person-embeddings",
                value,
                key=re.search(rb'"gallery_id":"(\w+)"', value)[1],
            )
            for value in values
        ]
        for each in sent:
            await each

    async def read_until(self, text: bytes) -> None:
        """Read until an event that contains `text` comes."""
        while text not in (await self._consumer.getone()).value:
            pass

    async def rate(self, load: Load, count: int, pid: int) -> Speed:
        """From sending the first of `count` events to reading all answers to closings."""
        events = load.events(count)
        closings = {f"end{count}-{gallery}": gallery for gallery in range(load.galleries)}
        start = time.perf_counter()
        cpu = cpu_seconds(pid)
        ends = [closing(video_id, gallery) for video_id, gallery in closings.items()]
        sending = asyncio.ensure_future(self.send(*events, *ends))
        while closings:
            value = json.loads((await self._consumer.getone()).value)
            closings.pop(value.get("video_id"), None)
        seconds = time.perf_counter() - start
        await sending
        return Speed(len(events) / seconds, 1e6 * (cpu_seconds(pid) - cpu) / len(events))

    async def latencies_ms(self, load: Load, *, background_hz: float = 0) -> np.ndarray:
        """From sending an event to reading its answer, at a steady rate, with others between."""
        found = []
        await self.send(load.event())
        others = asyncio.ensure_future(self._others(load, background_hz)) if background_hz else None
        for _ in range(LATENCY_EVENTS):
            value = load.event(copy=True)
            key = json.loads(value)["person_key"].encode()
            start = time.perf_counter()
            await self.send(value)
            await self.read_until(b'"' + key + b'"')
            found.append(time.perf_counter() - start)
            await asyncio.sleep(max(0.0, 1 / LATENCY_HZ - found[-1]))
        if others is not None:
            others.cancel()
        return np.array(found) * 1000

    async def _others(self, load: Load, hz: float) -> None:
        while True:
            vector_load = [load.event() for _ in range(5)]
            await self.send(*vector_load)
            await asyncio.sleep(5 / hz)


@asynccontextmanager
async def client(bootstrap: str, prefix: str):
    """A client of a running stream."""
    async with AsyncExitStack() as stack:
        producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, linger_ms=0, max_batch_size=256 * 1024
        )
        outputs = [f"{prefix}{topic}" for topic in ("duplicate-candidates", "video-progress")]
        consumer = AIOKafkaConsumer(
            *outputs, bootstrap_servers=bootstrap, auto_offset_reset="latest"
        )
        for each in (producer, consumer):
            await each.start()
            stack.push_async_callback(each.stop)
        for partition in consumer.assignment():
            await consumer.position(partition)
        yield Client(producer, consumer, prefix)


def field_of(raw: bytes, name: bytes) -> str:
    """A field with text of an event, without reading the rest."""
    return re.search(rb'"%s":"([^"]+)"' % name, raw)[1].decode()


async def fill(stream: Stream, load: Load, count: int) -> None:
    """Put rows into the changelog, as a matcher would have."""
    settings = stream.settings
    producer = AIOKafkaProducer(
        bootstrap_servers=list(settings.bootstrap), linger_ms=5, max_batch_size=512 * 1024
    )
    await producer.start()
    for raw in load.events(count):
        gallery = field_of(raw, b"gallery_id")
        key = EntryKey(gallery, "person", field_of(raw, b"person_key")).to_bytes()
        value = b'{"at":%d,"neighbours":{},"person":%b}' % (now_ms(), raw)
        partition = partition_of(gallery, settings.topics.person_embeddings.partitions)
        await producer.send(changelog_of(settings), value, key=key, partition=partition)
    await producer.flush()
    await producer.stop()


def bare(bootstrap: str, prefix: str, folder: str) -> None:
    """The other side, as a process: see the module's docstring."""
    import faust

    app = faust.App(
        f"{prefix}bare",
        broker=f"kafka://{bootstrap}",
        store="rocksdb://",
        datadir=folder,
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=4,
        table_standby_replicas=0,
        broker_session_timeout=6,
        broker_heartbeat_interval=2,
    )
    table = app.Table("rows", key_type=bytes, value_type=bytes)
    topic = app.topic(
        f"{prefix}person-embeddings", key_type=bytes, value_type=bytes, value_serializer="raw"
    )
    out = app.topic(f"{prefix}video-progress", value_type=bytes, value_serializer="raw", acks=True)
    answers = os.environ.get("ANSWERS") == "all"

    @app.agent(topic)
    async def write(stream):
        number = 0
        async for event in stream.events():
            number += 1
            table[b"%d" % number] = event.value
            if answers or b"video-closed" in event.value[:400]:
                await out.send(value=event.value)

    real = AIOKafkaConsumer.__init__

    def impatient(self, *arguments, **options) -> None:
        """As the matcher does: Faust's 1.5 s would hold the bare agent up, and flatter us."""
        real(self, *arguments, **options | {"fetch_max_wait_ms": 50})

    AIOKafkaConsumer.__init__ = impatient

    async def run() -> None:
        await app.start()
        await app.wait_until_stopped()

    asyncio.run(run())


@contextmanager
def bare_process(stream: Stream, *, answers: str):
    """The id of the process of a bare agent, which ends with the block."""
    folder = stream.folder / f"bare-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    command = [
        sys.executable,
        __file__,
        "--bare",
        *stream.settings.bootstrap,
        stream.settings.kafka.topic_prefix,
    ]
    process = subprocess.Popen([*command, str(folder)], env={**os.environ, "ANSWERS": answers})
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def installation(bootstrap: str) -> Stream:
    """A stream of its own, with topics."""
    stream = Stream(bootstrap, Path(tempfile.mkdtemp()), f"b{uuid.uuid4().hex[:6]}.")
    done = stream.cli("topics", "create")
    assert done.returncode == 0, done.stderr
    return stream


async def bare_rate(bootstrap: str, count: int) -> Speed:
    """The speed of the bare agent."""
    stream, load = installation(bootstrap), Load(4)
    with bare_process(stream, answers="closing") as pid:
        async with client(bootstrap, stream.settings.kafka.topic_prefix) as here:
            await here.rate(load, 200, pid)
            speed = await here.rate(load, count, pid)
    print(f"bare agent: {speed}")
    return speed


async def bare_latency(bootstrap: str) -> np.ndarray:
    """Times in ms from an event to the bare agent's answer."""
    stream, load = installation(bootstrap), Load()
    with bare_process(stream, answers="all") as pid:
        async with client(bootstrap, stream.settings.kafka.topic_prefix) as here:
            await here.rate(load, 100, pid)
            return await here.latencies_ms(load)


def start(stream: Stream):
    """A matcher that serves; 100,000 rows take their time."""
    return stream.start("matcher", ready=False).ready(seconds=300)


async def matcher_side(bootstrap: str, rows: int, galleries: int, count: int) -> Speed:
    """The speed of a matcher whose galleries hold so many rows."""
    stream, load = installation(bootstrap), Load(galleries)
    await fill(stream, load, rows * galleries)
    began = time.perf_counter()
    matcher = await asyncio.to_thread(start, stream)
    from_kafka = time.perf_counter() - began
    try:
        async with client(bootstrap, stream.settings.kafka.topic_prefix) as here:
            pid = matcher.process.pid
            await here.rate(load, 100, pid)
            before = matcher.metrics()
            speed = await here.rate(load, count, pid)
            # compare_commits reads this line, of older commits too.
            print(
                f"matcher, {galleries} galleries of {rows:,} to {rows + count // galleries:,}: "
                f"{speed}; {_stages(before, matcher.metrics(), count)}"
            )
            if rows == 1000:
                report("  latency, unloaded", await here.latencies_ms(load))
                beside = await here.latencies_ms(load, background_hz=LOAD_HZ)
                report(f"  latency beside {LOAD_HZ} events/s", beside)
        matcher.stop()
        if rows == 100_000:
            await recovery(stream, rows, from_kafka=from_kafka)
    finally:
        stream.close()
    return speed


async def recovery(stream: Stream, rows: int, *, from_kafka: float) -> None:
    """Print how long a matcher takes to serve with a local copy of the table, and without."""
    began = time.perf_counter()
    again = await asyncio.to_thread(start, stream)
    from_copy = time.perf_counter() - began
    read = [line.partition("read")[2] for line in again.log.splitlines() if " read " in line]
    print(
        f"  start until it serves, {rows:,} rows: {from_kafka:.1f} s with all rows from Kafka, "
        f"{from_copy:.1f} s with the local copy ({read[-1].strip()})"
    )


def _stages(before: dict[str, float], after: dict[str, float], count: int) -> str:
    parts = []
    for stage in ("parse", "apply", "publish", "write"):
        name = f'streamproc_stage_seconds_total{{stage="{stage}"}}'
        parts.append(f"{stage} {1e6 * (after[name] - before.get(name, 0)) / count:.0f}")
    return f"microseconds an event: {', '.join(parts)}"


def report(what: str, latencies_ms: np.ndarray) -> None:
    """Print the median and the 99th percentile."""
    p50, p99 = np.percentile(latencies_ms, (50, 99))
    rate = f"{len(latencies_ms)} events, {LATENCY_HZ}/s at most"
    print(f"{what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({rate})")


async def compare(bootstrap: str, *, quick: bool) -> None:
    """Print both sides.

    The bare agent runs before, between and after the sizes, as the machine may change meanwhile.
    """
    speeds: dict[int, Speed] = {}
    bares = [await bare_rate(bootstrap, 4000)]
    for rows, (galleries, count) in SIZES.items():
        if rows < 100_000 or not quick:
            speeds[rows] = await matcher_side(bootstrap, rows, galleries, count)
            bares.append(await bare_rate(bootstrap, 4000))
    report("bare agent, latency unloaded", await bare_latency(bootstrap))
    per_second, cpu = np.median(np.array(bares), axis=0)
    print(f"bare agent: {Speed(per_second, cpu)}, median of {len(bares)}")
    for rows, speed in speeds.items():
        print(
            f"ratio={speed.per_second / per_second:.2f} matcher to bare agent, gallery of {rows:,} "
            f"(by processor time {cpu / speed.cpu_microseconds:.2f})"
        )


HOLD_VIDEOS = ("a", "b", "c", "d")
"""Of 1,000 persons each, in one gallery."""


class Health:
    """Asks a service for its health again and again, in a thread, and notes the longest answer."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self.answers_ms: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        while not self._stop.is_set():
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.answers_ms.append(1000 * (time.perf_counter() - began))
            time.sleep(0.002)


async def hold(bootstrap: str) -> None:
    """Print how long health checks wait while a video closes in a gallery of 4,000 persons."""
    stream = installation(bootstrap)
    matcher = await asyncio.to_thread(start, stream)
    prefix = stream.settings.kafka.topic_prefix
    try:
        async with client(bootstrap, prefix) as here:
            for name in HOLD_VIDEOS:
                made = persons(200, 0.6, video=name)
                await here.send(*(event.to_json() for event in made))
                # A person again, in a gallery of its own: once it is done, so are all before it.
                await here.send(closing(f"before-{name}", 0).replace(b'"bench0"', b'"g"'))
                await here.read_until(f'"before-{name}"'.encode())
                await here.send(ending(name).to_json())
                with Health(matcher.url) as health:
                    began = time.perf_counter()
                    await here.read_until(b'"candidate_count"')
                    seconds = time.perf_counter() - began
                    await asyncio.sleep(1)  # rows are still being written
                longest = max(health.answers_ms)
                middle = np.median(health.answers_ms)
                print(
                    f"closing {name}, {len(made) * (1 + HOLD_VIDEOS.index(name)):,} persons, "
                    f"{seconds:.1f} s: longest answer of /healthz {longest:.0f} ms, "
                    f"median {middle:.1f} ms of {len(health.answers_ms)}"
                )
    finally:
        stream.close()


def by_commit(tree: Path, *, quick: bool) -> dict[str, float]:
    """Microseconds an event for each size, as the benchmark of a checkout prints them."""
    with tempfile.TemporaryDirectory() as home:
        jars, reason = brokers.jars_or_reason()
        assert jars is not None, reason
        (Path(home) / "libs").symlink_to(jars)  # every commit takes an installation
        printed = run_python(
            tree,
            str(tree / "tests" / "benchmarks" / Path(__file__).name),
            *(["--quick"] if quick else []),
            environment={"KAFKA_HOME": home},
        )
    line = re.compile(r"matcher, \d+ galleries of ([\d,]+) .*: ([\d,]+)/s \((\d+) us")
    figures = {}
    for rows, per_second, cpu_microseconds in line.findall(printed):
        name = f"an event into a gallery of {rows}"
        figures[f"{name}, us"] = 1e6 / int(per_second.replace(",", ""))
        figures[f"{name}, us of processor time"] = float(cpu_microseconds)
    return figures


def closings(tree: Path) -> dict[str, float]:
    """Processor seconds of a closing by load, of the code of a checkout."""
    printed = run_python(tree, str(Path(__file__).with_name("closing.py")))
    print(printed, end="", flush=True)
    found = re.findall(r"(closing .*): ([\d.]+) s \(", printed)
    return {name: float(seconds) for name, seconds in found}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without the gallery of 100,000")
    parser.add_argument("--closing", action="store_true", help="of a video of 1,000 persons")
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    add_comparison(parser, runs=3)
    parser.add_argument("--hold", action="store_true", help="how long health checks wait")
    options = parser.parse_args()
    if options.bare:
        bare(*options.bare)
        return
    print_machine()
    if options.closing and options.against is None:
        closings(Path(__file__).resolve().parents[2])
        return
    if options.closing:
        compare_commits(options.against, closings, runs=options.runs)
        return
    if options.against is not None:
        measure = partial(by_commit, quick=options.quick)
        compare_commits(options.against, measure, runs=options.runs)
        return
    broker = brokers.start_broker(Path(tempfile.mkdtemp()))
    try:
        if options.hold:
            asyncio.run(hold(broker.bootstrap))
            return
        print(LOAD)
        asyncio.run(compare(broker.bootstrap, quick=options.quick))
    finally:
        broker.stop()


if __name__ == "__main__":
    main()
