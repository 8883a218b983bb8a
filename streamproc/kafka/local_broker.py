"""A single Apache Kafka broker on this machine's loopback, for `streamproc dev` and for the tests; not for service.

It is run by the Java on the PATH from the jars of an installation (`KAFKA_HOME`), or from jars that
Maven gets once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import IO

from streamproc.errors import MachineError, UsageError

KAFKA_VERSION = "4.3.1"
_START_SECONDS = 60
_STOP_SECONDS = 30
_HEAP = ("-Xms256m", "-Xmx512m")

# tools: formats the data folder; slf4j-simple: the log goes to stderr with no configuration file.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>streamproc</groupId><artifactId>broker</artifactId><version>1</version>
<packaging>pom</packaging>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""

_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.segment.bytes=67108864
message.max.bytes=8388608
num.network.threads=2
num.io.threads=2
"""


def find_jars(cache_folder: Path) -> Path:
    """The folder with Kafka's jars: that of KAFKA_HOME, else one that Maven fills once in `cache_folder`.

    Raises UsageError where neither can be had.
    """
    home = os.environ.get("KAFKA_HOME")  # not a setting of ours: Kafka's own name for it
    if home:
        libs = Path(home) / "libs"
        if not any(libs.glob("kafka_2*.jar")):
            raise UsageError(
                f"KAFKA_HOME={home}: expected an Apache Kafka installation with libs/kafka_2.13-*.jar there"
            )
        return libs
    libs = cache_folder / f"kafka-{KAFKA_VERSION}"
    if not libs.is_dir():
        _fetch_jars(libs)
    return libs


def _fetch_jars(libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise UsageError(
            "no Kafka here: name a running one with --bootstrap HOST:PORT, set KAFKA_HOME to an Apache Kafka "
            "installation, or install Maven (mvn), which gets one"
        )
    part = libs.with_name(f"{libs.name}.part-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        (part / "pom.xml").write_text(_POM)
        goal = [
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={part / 'jars'}",
        ]
        command = [maven, "-q", "-B", "-f", str(part / "pom.xml"), *goal]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode:
            raise MachineError(
                f"Maven could not get Kafka {KAFKA_VERSION}: {' '.join(done.stdout.split())[-300:]}"
            )
        with contextlib.suppress(FileExistsError):
            (part / "jars").rename(libs)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class LocalBroker:
    """One broker with its data in `folder`; started again on the same folder it goes on where it was."""

    def __init__(self, jars: Path, folder: Path, *, port: int = 0) -> None:
        self._jars = jars
        self._folder = folder.absolute()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers; raises MachineError with the end of its log where it does not."""
        if shutil.which("java") is None:
            raise UsageError(
                "Kafka needs Java 17 or newer on the PATH; or name a running one with --bootstrap HOST:PORT"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        properties = self._folder / "server.properties"
        if not properties.is_file():
            self._format(properties)
        with (self._folder / "kafka.log").open("ab") as log_file:
            where = log_file.tell()
            self._process = self._java(["kafka.Kafka", str(properties)], log_file)
        self._wait_until_started(where)

    def _format(self, properties: Path) -> None:
        text = _PROPERTIES.format(port=self.port, controller_port=free_port(), folder=self._folder)
        properties.write_text(text)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        with (self._folder / "format.log").open("wb") as log_file:
            arguments = [
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={cluster}",
                "--config",
                str(properties),
            ]
            if self._java(arguments, log_file).wait():
                properties.unlink()
                raise MachineError(f"Kafka could not prepare {self._folder}: see format.log there")

    def _java(self, arguments: list[str], log_file: IO[bytes]) -> subprocess.Popen[bytes]:
        quiet = (
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
        )
        command = ["java", *_HEAP, "-XX:+UseSerialGC", *quiet, "-cp", f"{self._jars}/*", *arguments]
        # Its own session: a Ctrl-C in the terminal is for the services, which still need the broker
        # to finish.
        return subprocess.Popen(command, stdout=log_file, stderr=log_file, start_new_session=True)  # noqa: S603 - ours

    def _wait_until_started(self, where: int) -> None:
        assert self._process is not None
        log_path = self._folder / "kafka.log"
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            with log_path.open("rb") as log_file:
                log_file.seek(where)
                if b"Kafka Server started" in log_file.read():
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        self.kill()
        tail = log_path.read_text(errors="replace").splitlines()[-3:]
        raise MachineError(f"Kafka did not start: {' '.join(tail)[-400:]}")

    def stop(self) -> None:
        """End it in order; kill it where that takes too long."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                print("streamproc: Kafka did not stop in time and was killed", file=sys.stderr)  # noqa: T201
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port(preferred: int = 0) -> int:
    """A free port on the loopback: `preferred` where it is one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
