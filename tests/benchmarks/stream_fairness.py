"""The sample clip alone, beside a file of 4 GiB that is hashed, and beside a silent server.

    stream_fairness.py [--videos N]

Worker and matcher run as processes on a real broker. The time is that from a video's announcement
to its `done` on `video-progress`, by the time stamps of both records. The three cases take turns.
While the large file is hashed, and while a server has taken requests and never answers, videos are
announced one after the other. The large file is no video: it is refused once it is hashed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from common import ROOT, print_machine

sys.path.insert(0, str(ROOT / "tests"))
import brokers
from services import Stream

from streamproc.kafka.topics import create_topics

SAMPLE = ROOT / "tests" / "sample"
LARGE_BYTES = 4 << 30
ROUNDS = 3
AT_ONCE_OF_THE_SILENT = 4
ALONE = "alone"
BESIDE_HASHING = "beside a file of 4 GiB"
BESIDE_SILENCE = "beside a server that never answers"


class SilentServer:
    """Takes connections on 127.0.0.1, and never answers; `taken` are those so far."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self.taken.append(self._socket.accept()[0])

    def close(self) -> None:
        """Let all go."""
        self._socket.close()
        for connection in self.taken:
            connection.close()


def end_of(stream: Stream, video_id: str) -> tuple[str, int] | None:
    """How a video has ended, and when that was said in milliseconds."""
    for record in stream.records("video-progress"):
        event = json.loads(record.value)
        if event["video_id"] == video_id and event["state"] in ("done", "failed", "cancelled"):
            return event["state"], record.timestamp
    return None


def announced_ms(stream: Stream, video_id: str) -> int:
    """When a video was announced, in milliseconds."""
    return max(
        record.timestamp
        for record in stream.records("video-ready")
        if json.loads(record.value)["video_id"] == video_id
    )


def has_ended(stream: Stream, video_id: str) -> bool:
    """Whether nothing more will be said of a video."""
    return end_of(stream, video_id) is not None


def seconds_of(stream: Stream, names: list[str]) -> list[float]:
    """Announce the sample under each name, one after the other; return the time each took."""
    found = []
    for name in names:
        stream.announce("a.mp4", video_id=name, gallery_id=name)
        stream.eventually(lambda name=name: has_ended(stream, name), name)
        state, ended_ms = end_of(stream, name)
        assert state == "done", (name, state)
        found.append((ended_ms - announced_ms(stream, name)) / 1000)
    return found


def measure(stream: Stream, silent: SilentServer, videos: int) -> dict[str, list[float]]:
    """The times of each case."""
    found: dict[str, list[float]] = {ALONE: [], BESIDE_HASHING: [], BESIDE_SILENCE: []}
    seconds_of(stream, [f"warm{number}" for number in range(3)])
    for turn in range(ROUNDS):
        found[ALONE] += seconds_of(stream, [f"alone{turn}-{i}" for i in range(videos)])
        hashed = f"large{turn}"
        stream.announce("large.mp4", video_id=hashed, tracks={"uri": "a.persons.npz"})
        number = 0
        while number < videos:
            name = f"hashing{turn}-{number}"
            seconds = seconds_of(stream, [name])
            if has_ended(stream, hashed):  # maybe before the other had ended: not counted
                hashed = f"large{turn}-{number}"
                stream.announce("large.mp4", video_id=hashed, tracks={"uri": "a.persons.npz"})
                continue
            found[BESIDE_HASHING] += seconds
            number += 1
        stream.eventually(lambda hashed=hashed: has_ended(stream, hashed), hashed)
        before = len(silent.taken)
        unanswered = [f"silent{turn}-{i}" for i in range(AT_ONCE_OF_THE_SILENT)]
        for name in unanswered:
            stream.announce(f"http://{silent.host}/{name}.mp4", video_id=name)
        stream.eventually(lambda before=before: len(silent.taken) > before, "a request")
        found[BESIDE_SILENCE] += seconds_of(stream, [f"silence{turn}-{i}" for i in range(videos)])
        assert not any(has_ended(stream, name) for name in unanswered)
        for name in unanswered:
            stream.cli("cancel", name)
            stream.eventually(lambda name=name: has_ended(stream, name), name)
    return found


def main() -> None:
    """Start everything, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=5, help="of each case, in each round")
    videos = parser.parse_args().videos
    print_machine()
    broker = brokers.start_broker(Path(tempfile.mkdtemp()))
    silent = SilentServer()
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(
            broker.bootstrap,
            Path(folder),
            "fairness.",
            remote__allowed_hosts=silent.host,
        )
        for name in ("sample.mp4", "sample.persons.npz"):
            content = (SAMPLE / name).read_bytes()
            (stream.media / name.replace("sample", "a")).write_bytes(content)
        with (stream.media / "large.mp4").open("wb") as large:
            large.truncate(LARGE_BYTES)
        try:
            asyncio.run(create_topics(stream.settings))
            stream.start("worker")
            stream.start("matcher")
            found = measure(stream, silent, videos)
        finally:
            stream.close()
            silent.close()
            broker.stop()
    alone = statistics.median(found[ALONE])
    for what, seconds in found.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}, {len(seconds)} videos"
        print(f"{what}: {median:.3f} s ({spread}); ratio={median / alone:.2f} (asked: 1.5)")


if __name__ == "__main__":
    main()
