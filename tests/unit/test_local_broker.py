"""Where the jars of a local Kafka come from: KAFKA_HOME in either form, or Maven."""

from __future__ import annotations

import socket

import pytest

from streamproc.errors import MachineError, UsageError
from streamproc.kafka.local_broker import KAFKA_VERSION, find_jars, free_port

JAR = f"kafka_2.13-{KAFKA_VERSION}.jar"
ANOTHER_PROCESS_IS_FASTER = 'mkdir -p "$CACHE" && touch "$CACHE/jar"'


@pytest.fixture
def home(tmp_path):
    """An empty folder for KAFKA_HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def maven(tmp_path, monkeypatch):
    """Put a program in the place of Maven that makes the folder of jars and does a little more."""
    monkeypatch.delenv("KAFKA_HOME", raising=False)

    def install(more: str) -> None:
        program = tmp_path / "bin" / "mvn"
        program.parent.mkdir()
        make_jars = (
            'for word; do case "$word" in -DoutputDirectory=*) out="${word#*=}";; esac; done\n'
            f'mkdir -p "$out" && touch "$out/{JAR}"\n'
        )
        cache = tmp_path / "cache" / f"kafka-{KAFKA_VERSION}"
        program.write_text(f"#!/bin/sh\nCACHE={cache}\n{make_jars}{more}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    return install


@pytest.mark.parametrize("place", [".", "libs"])
def test_kafka_home_is_an_installation_or_a_folder_of_jars(home, place, tmp_path, monkeypatch):
    """The jars are found in KAFKA_HOME itself or in its folder libs."""
    (home / place).mkdir(exist_ok=True)
    (home / place / JAR).touch()
    monkeypatch.setenv("KAFKA_HOME", str(home))
    assert find_jars(tmp_path / "cache") == home / place
    monkeypatch.delenv("KAFKA_HOME")
    assert find_jars(tmp_path / "cache", home=home) == home / place


def test_a_kafka_home_without_jars_is_a_usage_error(home, tmp_path, monkeypatch):
    """The message says what was expected there; Maven is not asked instead."""
    monkeypatch.setenv("KAFKA_HOME", str(home))
    with pytest.raises(UsageError, match=r"KAFKA_HOME=.*home: expected kafka_2\.13-\*\.jar"):
        find_jars(tmp_path / "cache")


def test_maven_fills_the_cache_once(maven, tmp_path):
    """What Maven has downloaded is used again without it."""
    maven("")
    jars = find_jars(tmp_path / "cache")
    assert [path.name for path in jars.iterdir()] == [JAR]
    (tmp_path / "bin" / "mvn").write_text("#!/bin/sh\nexit 1\n")
    assert find_jars(tmp_path / "cache") == jars
    assert [path.name for path in jars.parent.iterdir()] == [jars.name]


def test_of_two_processes_that_ask_maven_one_fills_the_cache(maven, tmp_path):
    """The jars of the process that was faster are used, and no part is left behind."""
    maven(ANOTHER_PROCESS_IS_FASTER)
    jars = find_jars(tmp_path / "cache")
    assert [path.name for path in jars.iterdir()] == ["jar"]
    assert [path.name for path in jars.parent.iterdir()] == [jars.name]


def test_a_maven_that_fails_is_the_machines_fault(maven, tmp_path):
    """Maven's last words are in the message, and nothing half is left in the cache."""
    maven("echo no network; exit 1")
    with pytest.raises(MachineError, match="no network"):
        find_jars(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_port_whose_last_connection_has_just_ended_is_free():
    """The system remembers such a connection for a minute, which keeps no broker from listening."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listening.accept()
            accepted.close()  # this side ends first, so it is the one that remembers
    assert free_port(port) == port


def test_a_port_that_listens_is_not_free():
    """Then another one is taken."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert free_port(port) != port
