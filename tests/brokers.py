"""A real Apache Kafka for the tests; the first lines of a run say which one is used."""

from __future__ import annotations

import os
from pathlib import Path

from shared_data import shared_folder

from streamproc.errors import StreamprocError
from streamproc.kafka.local_broker import LocalBroker, find_jars

CACHE = Path("~/.cache/streamproc").expanduser()


def broker_source() -> tuple[str, Path | str | None]:
    """What will run, in words, with the folder of its jars, its address, or None.

    The first of these that is there: the broker at STREAMPROC_TEST_BOOTSTRAP; the jars of
    KAFKA_HOME, of ../shared/kafka, or of Maven.
    """
    given = os.environ.get("STREAMPROC_TEST_BOOTSTRAP")
    if given:
        return f"the broker at STREAMPROC_TEST_BOOTSTRAP={given}", given
    shared = shared_folder()
    try:
        if os.environ.get("KAFKA_HOME"):
            return "Apache Kafka from KAFKA_HOME", find_jars(CACHE)
        if shared is not None and (shared / "kafka").is_dir():
            return "Apache Kafka from ../shared/kafka", find_jars(CACHE, home=shared / "kafka")
        return "Apache Kafka from Maven", find_jars(CACHE)
    except StreamprocError as error:
        return f"no broker ({error})", None


def jars_or_reason() -> tuple[Path | None, str]:
    """The jars for a broker of a test's own; where there are none, why a test cannot have one."""
    words, source = broker_source()
    if isinstance(source, Path):
        return source, ""
    return None, f"needs a broker of its own; there is {words}"


def start_broker(folder: Path, *, port: int = 0) -> LocalBroker:
    """Start a broker of this test's own, to be killed or restarted; the caller stops it."""
    jars, reason = jars_or_reason()
    assert jars is not None, reason
    broker = LocalBroker(jars, folder, port=port)
    broker.start()
    return broker
