"""What people type, as processes on a real broker.

Topics, submit, cancel, watch, matrix and dead letters.
"""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
import pytest
from brokers import start_broker

from streamproc.ids import video_id_of
from streamproc.kafka.topics import create_topics
from streamproc.settings import TopicsSettings, load_settings


def one_line(result, code, text) -> None:
    """The command ended as documented, with one line that says why."""
    assert result.returncode == code, result.stderr
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_topics_are_made_once_and_checked(stream):
    """`topics create` leaves what is there; `topics check` names what is missing or wrong."""
    stream = stream()
    assert stream.cli("topics", "create").stdout == ""  # the fixture made them
    lines = stream.cli("topics", "check").stdout.splitlines()
    assert len(lines) == len(TopicsSettings.model_fields) + 1
    assert any(line.endswith("streamproc-matcher-rows-changelog\t4") for line in lines)
    one_line(
        stream.cli("topics", "check", kafka__topic_prefix="other."),
        2,
        "topic other.video-ready: missing",
    )
    wrong = stream.cli("topics", "check", topics__person_embeddings__partitions=3)
    one_line(wrong, 2, "expected 3 partitions, found 4")
    assert "expected 3 partitions as person-embeddings has, found 4" in wrong.stderr


def test_topics_are_made_as_the_settings_say(stream):
    """Retention, event size and compaction of the topics are those of the settings."""
    stream = stream(
        kafka__topic_prefix="made.",
        topics__video_ready__retention_hours=3,
        kafka__max_event_bytes=2_000_000,
    )
    name = "made.streamproc-matcher-rows-changelog"
    found = stream.topic_configs("made.video-ready", "made.person-embeddings", name)
    hour_ms = 3_600_000
    for topic, hours in (("video-ready", 3), ("person-embeddings", 24)):
        config = found[f"made.{topic}"]
        # An event lives until its segment's newest one is too old.
        assert int(config["retention.ms"]) + int(config["segment.ms"]) == hours * hour_ms
        assert config["message.timestamp.type"] == "LogAppendTime"
    assert found[name]["max.compaction.lag.ms"] == str(24 * hour_ms)
    assert found["made.person-embeddings"]["max.message.bytes"] == "2000000"
    assert found["made.person-embeddings"]["min.insync.replicas"] == "1"
    assert found[name]["cleanup.policy"] == "compact"


def test_a_broker_that_is_away_is_one_line(stream):
    """Each command says in one line that no broker answers, and exits with 1."""
    stream = stream()
    for command in (
        ["topics", "check"],
        ["submit", str(stream.media / "a.mp4")],
        ["cancel", "x"],
        ["watch"],
    ):
        one_line(
            stream.cli(*command, "--bootstrap", "127.0.0.1:1"), 1, "127.0.0.1:1: expected a broker"
        )


def test_submit_names_files_under_the_media_root_and_refuses_others(stream, tmp_path):
    """A file outside the media root is refused without --copy, and copied with it."""
    stream = stream()
    inside = stream.cli(
        "submit", str(stream.media / "a.mp4"), "--gallery", "lobby", "--threshold", "0.8", "--json"
    )
    event = json.loads(inside.stdout)
    assert (event["video_uri"], event["tracks"]["uri"], event["gallery_id"]) == (
        "a.mp4",
        "a.persons.npz",
        "lobby",
    )
    assert event["video_id"] == video_id_of("a.mp4")
    assert event["options"]["similarity_threshold"] == 0.8

    outside = tmp_path / "outside.mp4"
    outside.write_bytes((stream.media / "a.mp4").read_bytes())
    (tmp_path / "outside.persons.npz").write_bytes((stream.media / "a.persons.npz").read_bytes())
    one_line(stream.cli("submit", str(outside)), 2, "--copy")
    copied = json.loads(stream.cli("submit", str(outside), "--copy", "--json").stdout)
    assert (stream.media / copied["video_uri"]).read_bytes() == outside.read_bytes()
    assert (stream.media / copied["tracks"]["uri"]).is_file()
    one_line(stream.cli("submit", str(tmp_path / "nothing.mp4")), 1, "found nothing there")
    one_line(
        stream.cli("submit", str(stream.media / "a.mp4"), "--recorded-at", "noon"), 2, "recorded_at"
    )
    assert [e["video_uri"] for e in stream.events("video-ready")].count("a.mp4") == 1


def test_a_dead_letter_is_listed_repaired_and_sent_back(stream):
    """A video that was missing is done after its dead letter is replayed."""
    stream = stream()
    stream.start("worker")
    stream.start("matcher")
    stream.announce("later.mp4", tracks={"uri": "a.persons.npz"})
    stream.send("video-ready", (b"k", b"{"))
    stream.eventually(lambda: len(stream.dead()) == 2, "dead letters")
    listed = [line.split("\t") for line in stream.cli("dead-letters", "list").stdout.splitlines()]
    (bad,) = [line for line in listed if line[1] == "bad-video"]
    assert "later.mp4" in bad[3]
    in_json = stream.cli("dead-letters", "list", "--json").stdout.splitlines()
    (broken,) = [line for line in map(json.loads, in_json) if line["error_code"] == "bad-event"]
    assert broken["value_size_bytes"] == "1"
    one_line(stream.cli("dead-letters", "replay"), 2, "expected places")
    one_line(stream.cli("dead-letters", "replay", "7@7"), 2, "no dead letter at 7@7")
    (stream.media / "later.mp4").write_bytes((stream.media / "a.mp4").read_bytes())
    assert stream.cli("dead-letters", "replay", bad[0]).returncode == 0
    watched = stream.cli("watch", "--until-done", video_id_of("later.mp4"), "--from-beginning")
    assert watched.returncode == 0, watched.stderr
    key = video_id_of("later.mp4")
    lines = watched.stdout.splitlines()
    assert lines[0].startswith(f"proposed\t{key}/1\t{key}/6\t0.99")
    assert lines[-1].endswith("\tlikely")  # judged again when the video closed


def test_watch_ends_with_its_own_code_where_the_video_fails(stream):
    """`watch --until-done` exits with 4 and the reason where the video fails."""
    stream = stream()
    stream.start("worker")
    stream.announce("missing.mp4", tracks={"uri": "a.persons.npz"})
    watched = stream.cli("watch", "--until-done", video_id_of("missing.mp4"), "--from-beginning")
    assert watched.returncode == 4
    assert "failed: missing.mp4" in watched.stderr


def test_the_growing_matrix_can_be_read_at_any_time(stream):
    """`matrix` writes a symmetric matrix of all persons of a gallery that there are so far."""
    stream = stream()
    stream.start("worker")
    matcher = stream.start("matcher")
    stream.announce("a.mp4", gallery_id="lobby")
    stream.announce("b.mp4", gallery_id="lobby")
    stream.eventually(lambda: stream.states().count("done") == 2, "done")
    target = stream.folder / "matrix.npy"
    written = stream.cli("matrix", "--gallery", "lobby", "-o", str(target), "--url", matcher.url)
    assert written.returncode == 0, written.stderr
    matrix = np.load(io.BytesIO(target.read_bytes()))
    assert matrix.shape == (12, 12)
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    one_line(
        stream.cli("matrix", "--gallery", "none", "-o", str(target), "--url", matcher.url),
        2,
        "no gallery 'none'",
    )
    one_line(
        stream.cli("matrix", "--gallery", "x", "-o", str(target), "--url", "http://127.0.0.1:1"),
        1,
        "matcher",
    )


@pytest.mark.long
def test_a_broker_goes_on_where_it_was_at_another_port(jars, tmp_path):
    """Started again on its folder, it has its topics, whichever port is free then."""
    assert jars
    for _ in range(2):
        broker = start_broker(tmp_path)
        try:
            settings = load_settings({"bootstrap": broker.bootstrap}, config_file=None)
            made = asyncio.run(create_topics(settings))
        finally:
            broker.stop()
    assert made == []
