"""A real Apache Kafka for the tests: whose it is is printed once, at the top of the run."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from streamproc.errors import StreamprocError
from streamproc.kafka.local_broker import LocalBroker, find_jars
from streamproc.settings import Settings, load_settings

SHARED = Path(__file__).parents[2] / "shared" / "kafka"
CACHE = Path("~/.cache/streamproc").expanduser()


def broker_source() -> tuple[str, Path | str | None]:
    """What will run, in words, and its jars, its address, or nothing: given, KAFKA_HOME, ../shared/kafka, Maven."""
    given = os.environ.get("STREAMPROC_TEST_BOOTSTRAP")
    if given:
        return f"the broker at STREAMPROC_TEST_BOOTSTRAP={given}", given
    if "KAFKA_HOME" not in os.environ and (SHARED / "libs").is_dir():
        return "Apache Kafka from ../shared/kafka", SHARED / "libs"
    try:
        jars = find_jars(CACHE)
    except StreamprocError as error:
        return f"no broker ({error})", None
    return f"Apache Kafka from {'KAFKA_HOME' if 'KAFKA_HOME' in os.environ else 'Maven'}", jars


def start_broker(folder: Path, *, port: int = 0) -> LocalBroker:
    """Start a broker of this test's own, to be killed or restarted; the caller stops it."""
    words, jars = broker_source()
    assert isinstance(jars, Path), f"a broker of one's own is needed, there is {words}"
    broker = LocalBroker(jars, folder, port=port)
    broker.start()
    return broker


def isolated(bootstrap: str, **flags: object) -> Settings:
    """Settings with topics and groups of this test's own, small and quick."""
    small = {
        f"topics.{name}.partitions": 4
        for name in ("video_ready", "person_embeddings", "duplicate_candidates")
    }
    quick = {"kafka.session_timeout_seconds": 6.0, "service.http_port": 0}
    own = {"bootstrap": bootstrap, "kafka.topic_prefix": f"t{uuid.uuid4().hex[:8]}."}
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return load_settings(own | small | quick | given, config_file=None)
