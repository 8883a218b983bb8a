"""`docker compose up` as the README has it, run for real by `make test-compose`.

Needs a Docker engine and minutes. One stack serves all tests, under a project name, ports and a
media folder of its own, which are gone afterwards. The tests build on each other in the order in
which they stand.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer
from processes import eventually

from streamproc.ids import video_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGES = Path(
    os.environ.get("STREAMPROC_BASE_IMAGES", ROOT.parent / "shared" / "docker" / "base-images")
)
PUBLIC_IMAGES = ("python:3.13-slim-trixie", "apache/kafka:4.3.1")
OURS = ("worker", "matcher", "animator", "review")
PAIR = frozenset({1, 6})  # the person of the sample that left and came back

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "STREAMPROC_TEST_COMPOSE" not in os.environ, reason="starts containers: `make test-compose`"
    ),
]


def _docker(
    *arguments: str, timeout: float = 120, check: bool = True, **more
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False, **more
    )
    assert done.returncode == 0 or not check, (
        f"docker {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done


@dataclass
class Stack:
    """One running `docker compose up` of the repository's file, and a user at a terminal."""

    project: str
    media: Path
    environment: dict[str, str]
    bootstrap: str
    scale: dict[str, int] = field(default_factory=dict)

    def compose(self, *arguments: str, **more) -> str:
        command = ("compose", "-p", self.project, "--project-directory", str(ROOT), *arguments)
        return _docker(*command, env=os.environ | self.environment, **more).stdout

    def up(self, **scale: int) -> None:
        """As the README says, in the background; returns when all are healthy."""
        flags = []
        for name, count in scale.items():
            flags += ["--scale", f"{name}={count}"]
        self.compose("up", "-d", *flags, timeout=240)
        for service in ("kafka", *OURS):
            count = scale.get(service, 1)
            eventually(
                lambda s=service, n=count: self.health(s) == ["healthy"] * n,
                f"{service} healthy",
                seconds=90,
            )

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", "--all", service).split()

    def inspect(self, service: str, template: str) -> list[str]:
        return _docker("inspect", "-f", template, *self.containers(service)).stdout.split()

    def health(self, service: str) -> list[str]:
        return self.inspect(service, "{{.State.Health.Status}}") if self.containers(service) else []

    def kafka(self, tool: str, *arguments: str, **more) -> str:
        command = (
            f"/opt/kafka/bin/kafka-{tool}.sh",
            "--bootstrap-server",
            "kafka:29092",
            *arguments,
        )
        return self.compose("exec", "-T", "kafka", *command, **more)

    def publish(self, *uris: str) -> None:
        """Publish as somebody does who knows nothing of streamproc but the topic.

        Several videos get keys, which spread them over the partitions.
        """
        lines = [json.dumps({"video_uri": uri}) for uri in uris]
        properties = []
        if len(uris) > 1:
            lines = [f"{video_id_of(uri)}|{line}" for uri, line in zip(uris, lines, strict=True)]
            properties = ["--reader-property", "parse.key=true"]
            properties += ["--reader-property", "key.separator=|"]
        text = "".join(f"{line}\n" for line in lines)
        self.kafka("console-producer", "--topic", "video-ready", *properties, input=text)

    def consume(self, topic: str, count: int) -> list[dict]:
        limits = ("--max-messages", str(count), "--timeout-ms", "30000")
        lines = self.kafka(
            "console-consumer", "--topic", topic, "--from-beginning", *limits
        ).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def user(self, *arguments: str, timeout: float = 60) -> str:
        """Run `streamproc` on this machine, outside the containers."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")
        }
        environment |= {
            "STREAMPROC_BOOTSTRAP": self.bootstrap,
            "STREAMPROC_MEDIA_ROOT": str(self.media),
        }
        command = [sys.executable, "-m", "streamproc", *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment,
            cwd=self.media.parent,
        )
        assert done.returncode == 0, (
            f"streamproc {' '.join(arguments)}: {done.returncode}\n{done.stderr[-3000:]}"
        )
        return done.stdout

    def candidates(self, video_id: str) -> list[dict]:
        """What `streamproc watch` prints of one video's candidates until that video is done."""
        lines = self.user(
            "watch", "--from-beginning", "--json", "--until-done", video_id, timeout=120
        )
        found = [json.loads(line) for line in lines.splitlines()]
        return [
            each for each in found if video_id in {person["video_id"] for person in each["persons"]}
        ]

    def pairs(self, names: list[str], *, seconds: float) -> dict[str, set[frozenset[int]]]:
        """Wait until all these videos are done; each one's candidates, as pairs of person ids."""
        videos = {video_id_of(name): name for name in names}
        return asyncio.run(asyncio.wait_for(self._pairs(videos), seconds))

    async def _pairs(self, videos: dict[str, str]) -> dict[str, set[frozenset[int]]]:
        topics = ("video-progress", "duplicate-candidates")
        consumer = AIOKafkaConsumer(
            *topics, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest"
        )
        events: list[dict] = []
        missing = set(videos)
        ends = None
        await consumer.start()
        try:
            while ends is None or any(
                [await consumer.position(place) < end for place, end in ends.items()]
            ):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    events += [json.loads(record.value) for record in records]
                missing -= {each["video_id"] for each in events if each.get("state") == "done"}
                # A video's candidates are published before its `done`.
                if not missing and ends is None:
                    ends = await consumer.end_offsets(consumer.assignment())
        finally:
            await consumer.stop()
        found: dict[str, set[frozenset[int]]] = {name: set() for name in videos.values()}
        for candidate in [each for each in events if "persons" in each]:
            name = videos.get(candidate["persons"][0]["video_id"])
            if name is not None:
                ids = frozenset(person["person_id"] for person in candidate["persons"])
                found[name].add(ids)
        return found

    def add_video(self, name: str) -> Path:
        for suffix in (".mp4", ".persons.npz"):
            shutil.copy(
                ROOT / "tests" / "sample" / f"sample{suffix}", self.media / f"{name}{suffix}"
            )
        return self.media / f"{name}.mp4"


def _person_ids(candidates: list[dict]) -> set[frozenset[int]]:
    """The pairs; one may be proposed when a person comes and updated when the video is closed."""
    return {frozenset(person["person_id"] for person in each["persons"]) for each in candidates}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _ask(container: str, port: int, path: str) -> str:
    """GET from inside a container: only the matchers' port is published."""
    address = f"http://127.0.0.1:{port}{path}"
    ask = f"import urllib.request as r; print(r.urlopen('{address}').read().decode())"
    return _docker("exec", container, "python", "-c", ask).stdout


def _videos_running(container: str) -> bool:
    metrics = _ask(container, 8081, "/metrics").splitlines()
    return any(
        line.startswith("streamproc_videos_running") and float(line.split()[1]) > 0
        for line in metrics
    )


def _have_images() -> None:
    """Make or pull what docker-compose.yml and the Dockerfile start from.

    Skip with the reason where neither works.
    """
    if BASE_IMAGES.is_file():
        done = subprocess.run(
            [BASE_IMAGES], capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{BASE_IMAGES}: {done.stderr[-2000:]}"
        return
    if shutil.which("docker") is None or _docker("info", check=False).returncode:
        pytest.skip(
            "no Docker engine answers, and there is no script to install one at "
            f"STREAMPROC_BASE_IMAGES={BASE_IMAGES}"
        )
    for image in PUBLIC_IMAGES:
        if _docker("image", "inspect", image, check=False).returncode:
            pulled = _docker("pull", "--quiet", image, timeout=600, check=False)
            if pulled.returncode:
                reason = pulled.stderr.strip()[:200]
                pytest.skip(f"{image} cannot be pulled ({reason}), and {BASE_IMAGES} is missing")


@contextmanager
def _running(stack: Stack) -> Iterator[Stack]:
    try:
        yield stack
    except BaseException:
        print(stack.compose("logs", "--no-color", "--tail", "60", "topics", *OURS, check=False))
        raise
    finally:
        stack.compose("down", "--volumes", "--timeout", "10", check=False, timeout=180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    """The compose stack, running."""
    _have_images()
    media = tmp_path_factory.mktemp("compose") / "media"
    media.mkdir(mode=0o755)
    port = _free_port()
    environment = {
        "MEDIA_FOLDER": str(media),
        "KAFKA_HOST_PORT": str(port),
        "MATCHER_HOST_PORTS": "0",
        "REVIEW_HOST_PORT": "0",
        "STOP_GRACE": "30s",
    }
    if os.geteuid():  # else this user could not remove the animations afterwards
        environment["MEDIA_USER"] = f"{os.geteuid()}:{os.getegid()}"
    stack = Stack(f"streamproc-test-{os.getpid()}", media, environment, f"127.0.0.1:{port}")
    begun = time.monotonic()
    stack.compose("build", "--quiet", timeout=1200)
    built = time.monotonic()
    with _running(stack):
        stack.up()
        until_healthy = time.monotonic() - built
        print(f"image built in {built - begun:.0f} s, all healthy {until_healthy:.0f} s later")
        yield stack


@pytest.fixture(autouse=True)
def _say_what_the_containers_said(stack, request) -> Iterator[None]:
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        print(stack.compose("logs", "--no-color", "--tail", "60", "topics", *OURS, check=False))


def test_all_topics_are_there_and_right_seen_from_the_host(stack) -> None:
    """`topics check` on the host finds every topic that the containers made."""
    names = [line.split("\t")[0] for line in stack.user("topics", "check").splitlines()]
    assert {"video-ready", "person-embeddings", "duplicate-candidates", "dead-letters"} <= set(
        names
    )
    assert set(names) <= set(stack.kafka("topics", "--list").split())


def test_a_line_from_the_console_producer_gives_the_pair_and_the_animations(stack) -> None:
    """One line of JSON on the topic gives the pair, six animations and their hashes."""
    stack.add_video("sample")
    stack.publish("sample.mp4")
    found = stack.candidates(video_id_of("sample.mp4"))
    assert _person_ids(found) == {PAIR}
    seen_inside = stack.consume("duplicate-candidates", 1)
    assert [each["event_id"] for each in seen_inside] == [found[0]["event_id"]]

    animations = stack.consume("animation-ready", 6)
    assert {each["person_id"] for each in animations} == {1, 2, 3, 4, 5, 6}
    for each in animations:
        assert each["state"] == "ready"
        # Relative to the media root, whoever reads it.
        content = (stack.media / each["uri"]).read_bytes()
        assert content[:4] == b"RIFF"
        assert hashlib.sha256(content).hexdigest() == each["sha256"]


def test_submit_on_the_host_names_the_same_file_and_the_matrix_can_be_read(stack) -> None:
    """`submit` and `matrix` on the host work with what the containers see."""
    video = stack.add_video("second")
    tracks = str(video.with_suffix(".persons.npz"))
    video_id = stack.user("submit", str(video), "--persons", tracks, "--gallery", "lobby")
    assert video_id.strip() == video_id_of("second.mp4")
    found = stack.candidates(video_id.strip())
    assert _person_ids(found) == {PAIR}
    assert {each["gallery_id"] for each in found} == {"lobby"}

    url = f"http://{stack.compose('port', 'matcher', '8082').strip()}"
    file = stack.media.parent / "matrix.npy"
    stack.user("matrix", "--gallery", "lobby", "-o", str(file), "--url", url)
    similarity = np.load(io.BytesIO(file.read_bytes()))
    assert similarity.shape == (6, 6)
    assert abs(similarity[0, 5] - found[0]["similarity"]) < 1e-5


def test_the_page_answers_and_what_is_decided_there_comes_out(stack) -> None:
    """A decision posted to the live page gives an identity on the topic; pictures are served."""
    address = f"http://{stack.compose('port', 'review', '8080').strip()}"

    def ask(path: str, said: dict | None = None) -> bytes:
        body = None if said is None else json.dumps(said).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    assert b"lobby" in ask("/")
    assert b"Possible duplicates" in ask("/?gallery=lobby")
    data = json.loads(ask("/api/gallery?gallery=lobby"))
    [pair] = data["candidates"]
    keys = [person["person_key"] for person in pair["persons"]]
    [shown] = [one for one in data["persons"] if one["person_key"] == keys[0]]
    assert shown["video"] == "second.mp4"
    picture = eventually(
        lambda: next(
            one["webp"]
            for one in json.loads(ask("/api/gallery?gallery=lobby"))["persons"]
            if one["person_key"] == keys[0]
        ),
        "the animation",
    )
    assert ask(f"/{picture}")[:4] == b"RIFF"
    ask("/api/decisions?gallery=lobby", {"kind": "pair", "person_keys": keys, "verdict": "same"})
    [identity] = stack.consume("identities", 1)
    assert identity["person_keys"] == keys


@pytest.mark.parametrize("service", OURS)
def test_a_service_is_nobody_and_can_write_only_where_it_must(stack, service) -> None:
    """A service runs without root and capabilities, on a file system it cannot change."""

    def inside(*command: str, check: bool = True) -> str:
        return stack.compose("exec", "-T", service, *command, check=check)

    assert inside("id", "-u").strip() == stack.environment.get("MEDIA_USER", "10001").split(":")[0]
    status = dict(
        line.split(":\t", 1)
        for line in inside("cat", "/proc/1/status").splitlines()
        if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    places = "/x /opt/streamproc/x /etc/x /media/x /state/x /tmp/x"
    script = f"for f in {places}; do touch $f 2>/dev/null && echo $f; done"
    written = inside("sh", "-c", script, check=False).split()
    assert written == (["/state/x", "/tmp/x"] if service == "matcher" else ["/tmp/x"])
    container = stack.containers(service)[0]
    refused = _docker("exec", container, "touch", "/opt/streamproc/x", check=False)
    assert "Read-only file system" in refused.stderr


def test_two_workers_and_two_matchers_share_the_work(stack) -> None:
    """Scaled to two each, all videos are done, and either matcher answers for all."""
    stack.up(worker=2, matcher=2)
    names = [stack.add_video(f"many-{number}").name for number in range(8)]
    stack.publish(*names)
    assert stack.pairs(names, seconds=90) == {name: {PAIR} for name in names}

    one, other = (
        json.loads(_ask(each, 8082, "/galleries")) for each in stack.containers("matcher")
    )
    assert sorted(one["partitions"] + other["partitions"]) == list(range(8))
    assert one["galleries"]
    assert other["galleries"]
    either = stack.containers("matcher")[0]
    for name in names:  # whoever has the gallery
        path = f"/galleries/{video_id_of(name)}/similarity?matrix=no"
        assert len(json.loads(_ask(either, 8082, path))["candidates"]) == 1


def test_a_killed_worker_is_started_again_and_every_video_is_done(stack) -> None:
    """Docker starts a killed worker again, and no video of its is lost."""
    victim = stack.containers("worker")[0]
    restarts = ("inspect", "-f", "{{.RestartCount}}", victim)
    assert _docker(*restarts).stdout.strip() == "0"
    names = [stack.add_video(f"killed-{number}").name for number in range(16)]
    stack.publish(*names)
    eventually(lambda: _videos_running(victim), "the victim has a video in work", seconds=30)
    # `docker kill` would count as "stopped by a user", after which Docker restarts nothing: kill
    # the process itself.
    pid = _docker("inspect", "-f", "{{.State.Pid}}", victim).stdout.strip()
    root_on_the_host = ("--rm", "--pid", "host", "--user", "0", "--entrypoint", "python")
    kill = f"import os; os.kill({pid}, 9)"
    _docker("run", *root_on_the_host, "streamproc:local", "-c", kill)
    assert stack.pairs(names, seconds=150) == {name: {PAIR} for name in names}
    eventually(lambda: _docker(*restarts).stdout.strip() == "1", "restarted", seconds=30)
    eventually(lambda: stack.health("worker") == ["healthy", "healthy"], "both healthy", seconds=60)


def test_nothing_was_given_up(stack) -> None:
    """There is no dead letter after all that."""
    assert stack.user("dead-letters", "list") == ""


def test_up_again_changes_nothing(stack) -> None:
    """A second `up` leaves the containers as they are."""
    before = [stack.containers(service) for service in OURS]
    stack.up(worker=2, matcher=2)
    assert [stack.containers(service) for service in OURS] == before


def test_services_stop_by_themselves_when_asked(stack) -> None:
    """`stop` ends all services with exit code 0 within their grace period."""
    stack.compose("stop", *OURS, timeout=90)
    for service in OURS:
        assert set(stack.inspect(service, "{{.State.ExitCode}}")) == {"0"}, service


def test_down_and_up_again_goes_on_where_it_was(stack) -> None:
    """After `down` and `up` a new video forms a pair with one from before: the volumes kept it."""
    stack.compose("down", timeout=120)
    try:
        stack.up()
    except AssertionError:
        if "already formatted" in stack.compose("logs", "--no-color", "kafka", check=False):
            pytest.skip(
                "this stand-in for apache/kafka does not start on its data; the real image does"
            )
        raise
    video = stack.add_video("third")
    found = stack.candidates(stack.user("submit", str(video), "--gallery", "lobby").strip())
    assert {video_id_of("second.mp4"), video_id_of("third.mp4")} in [
        {person["video_id"] for person in each["persons"]} for each in found
    ]


def test_down_leaves_nothing(stack) -> None:
    """`down --volumes` leaves no container, volume or network."""
    every = _docker(
        "inspect",
        "-f",
        "{{range .Mounts}}{{.Name}} {{end}}",
        *stack.compose("ps", "-q", "--all").split(),
    )
    volumes = set(every.stdout.split())
    stack.compose("down", "--volumes", timeout=120)
    ours = f"label=com.docker.compose.project={stack.project}"
    for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        assert _docker(*kind, "--quiet", "--filter", ours).stdout == "", kind
    assert volumes & set(_docker("volume", "ls", "--quiet").stdout.split()) == set()
