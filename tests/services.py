"""Runs the services as processes beside a test, and reads what they said on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from processes import PATIENCE_SECONDS, Process, eventually

from streamproc.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPTS = Path(__file__).with_name("scripts")


class Service(Process):
    """One service: `python -m streamproc NAME`, or a script of tests/scripts in its place."""

    def __init__(
        self, name: str, environment: dict[str, str], log_path: Path, *, script: str | None = None
    ) -> None:
        program = ["-m", "streamproc"] if script is None else [str(SCRIPTS / script)]
        super().__init__(name, [sys.executable, *program, name], log_path, environment=environment)

    @property
    def url(self) -> str | None:
        found = re.findall(r"health and metrics at (http://\S+)", self.log)
        return found[-1] if found else None

    @property
    def is_ready(self) -> bool:
        if self.url is None:
            return False
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    @property
    def not_ready_because(self) -> str | None:
        """What `/readyz` says while it says no."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                return None
        except urllib.error.HTTPError as answer:
            return json.loads(answer.read())["reason"]

    def ready(self, *, seconds: float = PATIENCE_SECONDS) -> Service:
        """Wait until it serves."""
        eventually(lambda: self.is_ready, f"{self.name} ready", seconds=seconds, processes=[self])
        return self

    def metrics(self) -> dict[str, float]:
        """All samples by their name with labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        samples = {}
        for line in lines:
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples


def get(url, accept="application/json"):
    """What an address answers, as JSON or as bytes."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as response:
        content = response.read()
    return json.loads(content) if accept == "application/json" else content


class Stream:
    """One installation of a test's own: its topics, its media root and its services.

    `variables` are further environment variables of its services and commands.
    """

    def __init__(self, bootstrap: str, folder: Path, prefix: str, **settings: object) -> None:
        self.folder = folder
        self.media = folder / "media"
        self.media.mkdir()
        own = {
            "bootstrap": bootstrap,
            "media_root": str(self.media),
            "kafka.topic_prefix": prefix,
            "kafka.session_timeout_seconds": 6,
            "service.http_port": 0,
            "jobs.retry_seconds": 0.2,
            "topics.video_ready.partitions": 4,
            "topics.tracks_ready.partitions": 2,
            "topics.person_embeddings.partitions": 4,
            "topics.duplicate_candidates.partitions": 2,
            "topics.animation_ready.partitions": 2,
            "topics.video_progress.partitions": 2,
            "matcher.state_folder": str(folder / "state"),
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        self.flags = own
        self.settings: Settings = load_settings(own, config_file=None)
        self.services: list[Service] = []
        self.variables: dict[str, str] = {}

    def environment(self, **more: object) -> dict[str, str]:
        flags = self.flags | {key.replace("__", "."): value for key, value in more.items()}
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")
        }
        ours = {
            f"STREAMPROC_{key.replace('.', '__').upper()}": str(value)
            for key, value in flags.items()
        }
        return inherited | ours | self.variables

    def start(
        self, name: str, *, script: str | None = None, ready: bool = True, **settings: object
    ) -> Service:
        """Start a service, and wait until it serves unless `ready` is false."""
        log_path = self.folder / f"{name}-{len(self.services)}.log"
        service = Service(name, self.environment(**settings), log_path, script=script)
        self.services.append(service)
        return service.ready() if ready else service

    def eventually(
        self, check: Callable[[], object], what: str, *, seconds: float = PATIENCE_SECONDS
    ) -> object:
        """`eventually`; fails as soon as a service of this installation has ended by itself."""
        return eventually(check, what, seconds=seconds, processes=self.services)

    def close(self) -> None:
        """Kill the services that run, suspended ones too."""
        for service in self.services:
            if not service.has_ended():
                service.send(signal.SIGCONT)
                service.kill()

    def cli(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end."""
        return subprocess.run(
            [sys.executable, "-m", "streamproc", *arguments],
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def send(
        self,
        topic: str,
        *records: tuple[bytes | None, bytes | None],
        headers=(),
        partition=None,
        compression=None,
        timestamp_ms=None,
    ) -> None:
        """Put records (key, value) on a topic as they are."""

        async def work() -> None:
            limit = 8 * 1024 * 1024
            producer = AIOKafkaProducer(
                bootstrap_servers=list(self.settings.bootstrap),
                max_request_size=limit,
                compression_type=compression,
            )
            await producer.start()
            try:
                name = self.settings.kafka.topic_prefix + topic
                options = {
                    "headers": list(headers),
                    "partition": partition,
                    "timestamp_ms": timestamp_ms,
                }
                sent = [
                    await producer.send(name, value, key=key, **options) for key, value in records
                ]
                await asyncio.gather(*sent)
            finally:
                await producer.stop()

        asyncio.run(work())

    def send_in_transaction(
        self, topic: str, *records: tuple[bytes | None, bytes | None], aborted: bool = False
    ) -> None:
        """Put records on a topic as one transaction, whose end takes an offset of a partition."""

        async def work() -> None:
            name = self.settings.kafka.topic_prefix + topic
            async with AIOKafkaProducer(
                bootstrap_servers=list(self.settings.bootstrap), transactional_id=f"{name}-test"
            ) as producer:
                await producer.begin_transaction()
                for key, value in records:
                    await producer.send_and_wait(name, value, key=key)
                await (producer.abort_transaction if aborted else producer.commit_transaction)()

        asyncio.run(work())

    def delete_topic(self, topic: str) -> None:
        """Delete a topic of the settings, and wait until it is gone."""

        async def work() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=list(self.settings.bootstrap))
            await admin.start()
            try:
                name = self.settings.kafka.topic_prefix + topic
                await admin.delete_topics([name])
                while name in await admin.list_topics():  # noqa: ASYNC110 - Kafka tells nobody
                    await asyncio.sleep(0.1)
            finally:
                await admin.close()

        asyncio.run(work())

    def announce(self, uri: str, **fields: object) -> None:
        """The smallest event, with whatever is added."""
        self.send("video-ready", (None, json.dumps({"video_uri": uri, **fields}).encode()))

    def records(self, topic: str) -> list[object]:
        """All that a topic of the settings holds, in order of partition and offset."""
        name = self.settings.kafka.topic_prefix + topic
        count = getattr(self.settings.topics, topic.replace("-", "_")).partitions
        return self.records_of(name, partitions=count)

    def records_of(self, name: str, *, partitions: int) -> list[object]:
        """All that a topic of this name and so many partitions holds, in the same order."""
        places = [TopicPartition(name, number) for number in range(partitions)]

        async def work() -> list[object]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=list(self.settings.bootstrap),
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=16 * 1024 * 1024,
                fetch_max_bytes=64 * 1024 * 1024,
            )
            await consumer.start()
            try:
                consumer.assign(places)
                ends = await consumer.end_offsets(places)
                await consumer.seek_to_beginning(*places)
                found = []
                while not all(
                    [await consumer.position(place) >= end for place, end in ends.items()]
                ):
                    for batch in (await consumer.getmany(timeout_ms=100)).values():
                        found += batch
                return sorted(found, key=lambda record: (record.partition, record.offset))
            finally:
                await consumer.stop()

        return asyncio.run(work())

    def events(self, topic: str) -> list[dict[str, object]]:
        return [json.loads(record.value) for record in self.records(topic)]

    def states(self, video_id: str | None = None) -> list[str]:
        """What `video-progress` said, in order."""
        return [
            event["state"]
            for event in self.events("video-progress")
            if video_id in {None, event["video_id"]}
        ]

    def dead(self) -> list[dict[str, str]]:
        """The reasons of all dead letters, without their prefix."""
        found = []
        for record in self.records("dead-letters"):
            reason = {}
            for name, value in record.headers:
                if name.startswith("dlq_"):
                    reason[name.removeprefix("dlq_")] = value.decode()
            found.append(reason)
        return found

    def committed(self, service: str, topic: str = "video-ready") -> dict[int, tuple[int, str]]:
        """Offset and metadata of a group, by partition."""

        async def work() -> dict[int, tuple[int, str]]:
            admin = AIOKafkaAdminClient(bootstrap_servers=list(self.settings.bootstrap))
            await admin.start()
            try:
                group = f"{self.settings.kafka.topic_prefix}streamproc-{service}"
                offsets = await admin.list_consumer_group_offsets(group)
            finally:
                await admin.close()
            name = self.settings.kafka.topic_prefix + topic
            return {
                place.partition: (committed.offset, committed.metadata)
                for place, committed in offsets.items()
                if place.topic == name
            }

        return asyncio.run(work())

    def topic_configs(self, *names: str) -> dict[str, dict[str, str]]:
        """What Kafka says of topics."""

        async def work() -> dict[str, dict[str, str]]:
            admin = AIOKafkaAdminClient(bootstrap_servers=list(self.settings.bootstrap))
            await admin.start()
            try:
                resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
                answers = await admin.describe_configs(resources)
            finally:
                await admin.close()
            configs = {}
            for answer in answers:
                for _, _, _, name, entries in answer.resources:
                    configs[name] = {entry[0]: entry[1] for entry in entries}
            return configs

        return asyncio.run(work())

    def lag(self, service: str, topic: str = "video-ready") -> int:
        """Records of a topic that a group has not committed."""
        ends: dict[int, int] = {}
        for record in self.records(topic):
            ends[record.partition] = record.offset + 1
        done = self.committed(service, topic)
        return sum(end - max(0, done.get(partition, (0, ""))[0]) for partition, end in ends.items())


@dataclass(eq=False)
class MediaServer:
    """Serves a folder over HTTP on the loopback.

    While `gate` is closed only the first half of a file goes out.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.gate = threading.Event()
        self.failing = 0
        """How many more requests are answered with 503."""
        self.gets: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                outer.gets.append(self.path.lstrip("/"))
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                if outer.failing > 0:
                    outer.failing -= 1
                    self.send_error(503)
                    return
                content = (outer.folder / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    with contextlib.suppress(OSError):  # the other side may go away
                        self.wfile.write(content[: len(content) // 2])
                        self.wfile.flush()
                        outer.gate.wait(PATIENCE_SECONDS)
                        self.wfile.write(content[len(content) // 2 :])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def media_server(folder: Path) -> Iterator[MediaServer]:
    """A running media server of this folder."""
    server = MediaServer(folder)
    try:
        yield server
    finally:
        server.close()
