"""A single Apache Kafka broker on this machine's loopback, for `streamproc dev` and the tests only.

The Java on the PATH runs it, from the jars of an installation (`KAFKA_HOME`) or from jars that
Maven downloads once.
"""

from __future__ import annotations

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
_JVM_OPTIONS = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # A broker for minutes: compiling for speed takes more of the processor than it gives back.
    "-XX:TieredStopAtLevel=1",
    # The log tells little more than that the server has started, which `start` waits for.
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
)

# tools: formats the data folder; slf4j-simple: the log goes to stderr with no configuration file.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>streamproc</groupId><artifactId>broker</artifactId><version>1</version>
<packaging>pom</packaging>
<dependencies>
<dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{KAFKA_VERSION}</version>
</dependency>
<dependency>
<groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId>
<version>{KAFKA_VERSION}</version>
</dependency>
<dependency>
<groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
</dependency>
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


def find_jars(cache_folder: Path, *, home: Path | None = None) -> Path:
    """The folder with Kafka's jars.

    `home`, or else the variable KAFKA_HOME, names an Apache Kafka installation with its jars in
    libs/, or a folder of such jars. Without either, Maven fills a folder in `cache_folder` once.
    Raises UsageError where there is no Kafka there and no Maven, MachineError where Maven fails.
    """
    named = home or os.environ.get("KAFKA_HOME")  # not a setting of ours: Kafka's own name for it
    if named:
        for folder in (Path(named) / "libs", Path(named)):
            if any(folder.glob("kafka_2*.jar")):
                return folder
        raise UsageError(
            f"KAFKA_HOME={named}: expected kafka_2.13-*.jar in it or in its folder libs"
        )
    libs = cache_folder / f"kafka-{KAFKA_VERSION}"
    if not libs.is_dir():
        _fetch_jars(libs)
    return libs


def _fetch_jars(libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise UsageError(
            "no Kafka here: name a running one with --bootstrap HOST:PORT, set KAFKA_HOME to an "
            "Apache Kafka installation, or install Maven (mvn), which downloads one"
        )
    part = libs.with_name(f"{libs.name}.part-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        (part / "pom.xml").write_text(_POM)
        command = [maven, "-q", "-B", "-f", str(part / "pom.xml")]
        command += ["dependency:copy-dependencies", "-DincludeScope=runtime"]
        command += [f"-DoutputDirectory={part / 'jars'}"]
        # No shell, and no argument from outside.
        ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if ran.returncode:
            output = " ".join(ran.stdout.split())[-300:]
            raise MachineError(f"Maven could not download Kafka {KAFKA_VERSION}: {output}")
        try:
            (part / "jars").rename(libs)
        except OSError:
            if not libs.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


class LocalBroker:
    """One broker with its data in `folder`; started again on that folder, it still has them.

    `port` of 0 takes any free one.
    """

    def __init__(self, jars: Path, folder: Path, *, port: int = 0) -> None:
        self._jars = jars
        self._folder = folder.absolute()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address that clients connect to."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the broker and wait until it answers.

        Raises UsageError without Java, MachineError with the end of the log if it does not start.
        """
        if shutil.which("java") is None:
            raise UsageError(
                "Kafka needs Java 17 or newer on the PATH; "
                "or name a running one with --bootstrap HOST:PORT"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        # Written each time: another port may be free than at the start before.
        properties = self._folder / "server.properties"
        properties.write_text(
            _PROPERTIES.format(port=self.port, controller_port=free_port(), folder=self._folder)
        )
        if not (self._folder / "data" / "meta.properties").is_file():
            self._format(properties)
        with (self._folder / "kafka.log").open("ab") as log_file:
            log_start = log_file.tell()
            self._process = self._java(["kafka.Kafka", str(properties)], log_file)
        self._wait_until_started(log_start)

    def _format(self, properties: Path) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        with (self._folder / "format.log").open("wb") as log_file:
            arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
            arguments += ["--config", str(properties)]
            if self._java(arguments, log_file).wait():
                raise MachineError(f"Kafka could not prepare {self._folder}: see format.log there")

    def _java(self, arguments: list[str], log_file: IO[bytes]) -> subprocess.Popen[bytes]:
        command = ["java", *_JVM_OPTIONS, "-cp", f"{self._jars}/*", *arguments]
        # A session of its own: a Ctrl-C in the terminal is for the services, which need the broker
        # until they have finished. No shell, and no argument from outside.
        return subprocess.Popen(  # noqa: S603
            command, stdout=log_file, stderr=log_file, start_new_session=True
        )

    def _wait_until_started(self, log_start: int) -> None:
        assert self._process is not None
        log_path = self._folder / "kafka.log"
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            with log_path.open("rb") as log_file:
                log_file.seek(log_start)
                if b"Kafka Server started" in log_file.read():
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        self.kill()
        tail = log_path.read_text(errors="replace").splitlines()[-3:]
        raise MachineError(f"Kafka did not start: {' '.join(tail)[-400:]}")

    def stop(self) -> None:
        """Ask it to stop, and kill it if that takes too long."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                sys.stderr.write("streamproc: Kafka did not stop in time and was killed\n")
            self.kill()

    def kill(self) -> None:
        """End it at once with SIGKILL, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port(preferred: int = 0) -> int:
    """Return a free port on the loopback, `preferred` if that is free."""
    with socket.socket() as probe:
        # As the broker does: else a port counts as taken for a minute after its last connection.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
