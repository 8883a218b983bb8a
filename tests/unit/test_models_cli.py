"""`streamproc models`: downloads that are cut off, ignore ranges, bring the wrong file, or are not there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner
from media_servers import Server, answer, status, whole

from streamproc.cli import cli
from streamproc.errors import MachineError, WeightsError
from streamproc.networks import manifest
from streamproc.networks.download import ATTEMPTS, Download
from streamproc.networks.manifest import Manifest, ModelEntry
from streamproc.networks.weights import DEFAULT_NAME

CONTENT = bytes(range(256)) * 4000
HALF = len(CONTENT) // 2


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def entry(server):
    return ModelEntry(
        name="tiny",
        architecture="osnet_x0_25",
        dim=4,
        input=(3, 256, 128),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
        licence="MIT",
        trained_on="nothing",
        file_name="tiny.pth",
        url=f"{server.url}/tiny.pth",
    )


@pytest.fixture
def run(entry, tmp_path, monkeypatch):
    """Run `streamproc models ...` with the package's manifest and `entry`, everything below tmp_path."""
    own = manifest.load_manifest()
    monkeypatch.setattr(
        manifest, "load_manifest", lambda: Manifest(format_version=1, models=(*own.models, entry))
    )
    monkeypatch.setenv("STREAMPROC_CACHE_FOLDER", str(tmp_path / "cache"))

    def call(*words):
        return CliRunner().invoke(cli, ["models", *map(str, words)])

    return call


class Ranges:
    """Answers ranges as RFC 9110 says; each of `cuts` is after how many bytes a connection breaks; notes the asked."""

    def __init__(self, content=CONTENT, cuts=(), etag='"1"'):
        self.content, self.cuts, self.etag, self.asked = content, list(cuts), etag, []

    def __call__(self, handler):
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((wanted, condition))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(self.content):
            answer(handler, 416)
            return
        ranged = wanted is not None and condition in {None, self.etag}
        start = start if ranged else 0
        body = self.content[start:]
        headers = {"Content_Length": len(body), "ETag": self.etag}
        if ranged:
            headers["Content_Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        answer(
            handler,
            206 if ranged else 200,
            body[: self.cuts.pop(0)] if self.cuts else body,
            **headers,
        )


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def fetch(entry, folder, **options):
    waits, seen = [], []
    path = Download(
        entry, folder, lambda *now: seen.append(now), wait=waits.append, **options
    ).run()
    assert path.read_bytes() == CONTENT
    assert files(folder) == ["tiny.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    return waits


def test_a_file_is_fetched_checked_and_named(server, entry, tmp_path) -> None:
    server.routes["/tiny.pth"] = whole(CONTENT)
    assert fetch(entry, tmp_path / "new" / "folder") == []


def test_a_download_goes_on_where_it_was_cut_off(server, entry, tmp_path) -> None:
    server.routes["/tiny.pth"] = ranges = Ranges(cuts=[1000, 500])
    assert fetch(entry, tmp_path) == [1, 2], "it waits longer each time"
    assert ranges.asked == [(None, None), ("bytes=1000-", '"1"'), ("bytes=1500-", '"1"')]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, entry, tmp_path) -> None:
    ranges = Ranges(cuts=[1000])

    def changing(handler):
        ranges(handler)
        ranges.etag = '"2"'

    server.routes["/tiny.pth"] = changing
    fetch(entry, tmp_path)
    assert len(ranges.asked) == 2


def test_a_later_call_goes_on_with_what_an_earlier_one_left(server, entry, tmp_path) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT[:HALF])
    server.routes["/tiny.pth"] = ranges = Ranges()
    fetch(entry, tmp_path)
    assert ranges.asked == [(f"bytes={HALF}-", None)]


@pytest.mark.parametrize("size_known", [True, False])
def test_what_is_whole_already_is_only_checked(server, entry, tmp_path, size_known) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT)
    server.routes["/tiny.pth"] = ranges = Ranges()
    entry = entry if size_known else entry.model_copy(update={"size_bytes": None})
    assert Download(entry, tmp_path).run().read_bytes() == CONTENT
    assert len(ranges.asked) == (0 if size_known else 1)


@pytest.mark.parametrize("left", [b"x" * HALF, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)])
def test_remains_of_another_file_are_thrown_away(server, entry, tmp_path, left) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(left)
    server.routes["/tiny.pth"] = Ranges()
    fetch(entry, tmp_path)


def test_a_server_that_ignores_ranges_sends_everything_again(server, entry, tmp_path) -> None:
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT[:HALF])
    server.routes["/tiny.pth"] = whole(CONTENT)
    fetch(entry, tmp_path)


def test_a_size_that_nobody_says_is_no_hindrance(server, entry, tmp_path) -> None:
    server.routes["/tiny.pth"] = lambda handler: answer(handler, body=CONTENT)
    path = Download(entry.model_copy(update={"size_bytes": None}), tmp_path).run()
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "wrong", [CONTENT[:-1] + b"x", CONTENT + b"more", b""], ids=["altered", "longer", "empty"]
)
@pytest.mark.parametrize("size_known", [True, False])
def test_wrong_content_leaves_nothing(server, entry, tmp_path, wrong, size_known) -> None:
    server.routes["/tiny.pth"] = whole(wrong)
    entry = entry if size_known else entry.model_copy(update={"size_bytes": None})
    short = size_known and not wrong
    with pytest.raises(
        MachineError if short else WeightsError, match="cut off" if short else "nothing was kept"
    ):
        Download(entry, tmp_path, wait=lambda _: None).run()
    assert files(tmp_path) == (["tiny.pth.part"] if short else [])


def test_a_file_that_is_not_there_is_said_at_once(server, entry, tmp_path) -> None:
    with pytest.raises(WeightsError, match="the server says 404"):
        Download(entry, tmp_path, wait=pytest.fail).run()
    assert server.asked == ["/tiny.pth"]
    assert files(tmp_path) == []


def test_a_server_in_trouble_is_asked_again_and_then_given_up(server, entry, tmp_path) -> None:
    server.routes["/tiny.pth"] = status(503)
    waits = []
    with pytest.raises(MachineError, match=f"503 .*, {ATTEMPTS} times; run it again"):
        Download(entry, tmp_path, wait=waits.append).run()
    assert waits == [1, 2, 4, 8]


def test_a_server_that_falls_silent_is_left(server, entry, tmp_path) -> None:
    def silent(handler):
        answer(handler, body=CONTENT[:10], Content_Length=len(CONTENT))
        server.closing.wait(5)

    server.routes["/tiny.pth"] = silent
    with pytest.raises(MachineError, match="timed out"):
        Download(entry, tmp_path, wait=lambda _: None, timeout_seconds=0.05).run()


def test_nobody_listens(server, entry, tmp_path) -> None:
    away = entry.model_copy(update={"url": "http://127.0.0.1:9/tiny.pth"})
    with pytest.raises(MachineError, match="Connection refused"):
        Download(away, tmp_path, wait=lambda _: None).run()


def test_two_at_once_do_not_write_into_one_file(server, entry, tmp_path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(handler):
        begun.set()
        go_on.wait(10)
        whole(CONTENT)(handler)

    server.routes["/tiny.pth"] = slow
    first = threading.Thread(target=Download(entry, tmp_path).run)
    first.start()
    assert begun.wait(10)
    with pytest.raises(MachineError, match="another process is fetching it"):
        Download(entry, tmp_path).run()
    go_on.set()
    first.join()
    assert (tmp_path / "tiny.pth").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(entry, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot be written"):
        Download(entry, tmp_path / "file" / "folder").run()


def test_pull_then_path_list_and_verify(server, run, tmp_path) -> None:
    server.routes["/tiny.pth"] = whole(CONTENT)
    path = str(tmp_path / "cache" / "models" / "tiny.pth")
    before = run("path", "tiny")
    assert before.exit_code == 1
    assert "run `streamproc models pull tiny`" in before.stderr
    assert run("verify", "tiny").stdout == "tiny\tmissing\t-\n"

    pulled = run("pull", "tiny")
    assert (pulled.exit_code, pulled.stdout) == (0, f"{path}\n")
    assert f"tiny: {len(CONTENT)} of {len(CONTENT)} bytes" in pulled.stderr
    assert run("path", "tiny").stdout == f"{path}\n"
    assert run("verify", "tiny").stdout == f"tiny\tok\t{path}\n"
    assert f"\t{path}\tnothing\tMIT\n" in run("list").stdout
    assert json.loads(run("list", "--json").stdout.splitlines()[-1])["path"] == path
    assert (run("pull", "tiny", "--quiet").stderr, server.asked) == ("", ["/tiny.pth"]), (
        "what is here is not fetched"
    )


def test_the_packages_weights_are_here(run) -> None:
    assert f"{DEFAULT_NAME}\tok\t" in run("verify", DEFAULT_NAME).stdout
    assert run("pull", DEFAULT_NAME).exit_code == 0
    assert f"{DEFAULT_NAME}\t" in run("list").stdout


def test_an_altered_file_is_wrong_until_it_is_pulled_again(server, run, tmp_path) -> None:
    server.routes["/tiny.pth"] = whole(CONTENT)
    path = tmp_path / "cache" / "models" / "tiny.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"altered")
    for words in (("verify",), ("verify", "tiny")):
        found = run(*words)
        assert found.exit_code == 1
        assert f"tiny\twrong\t{path}\n" in found.stdout
    assert run("path", "tiny").exit_code == 1
    assert run("pull", "tiny").exit_code == 0
    assert path.read_bytes() == CONTENT
    assert run("verify").exit_code == 0


def test_an_offline_folder_is_filled_and_then_searched_first(
    server, run, tmp_path, monkeypatch
) -> None:
    server.routes["/tiny.pth"] = whole(CONTENT)
    offline = tmp_path / "offline"
    assert run("pull", "tiny", "--to", offline).stdout == f"{offline / 'tiny.pth'}\n"
    assert run("path", "tiny").exit_code == 1
    monkeypatch.setenv("STREAMPROC_MODELS", str(offline))
    assert run("path", "tiny").stdout == f"{offline / 'tiny.pth'}\n"


def test_somebodys_own_file_is_not_written_over(server, run, tmp_path) -> None:
    (tmp_path / "tiny.pth").write_bytes(b"own")
    refused = run("pull", "tiny", "--to", tmp_path)
    assert refused.exit_code == 2
    assert "move it away first" in refused.stderr
    assert (tmp_path / "tiny.pth").read_bytes() == b"own"


@pytest.mark.parametrize("command", ["pull", "verify", "path"])
def test_an_unknown_name_is_a_usage_error_that_lists_the_known(run, command) -> None:
    refused = run(command, "osnet")
    assert refused.exit_code == 2
    assert f"no weights are called 'osnet': expected one of {DEFAULT_NAME}" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_failed_pull_is_one_line_and_exit_code_1(run) -> None:
    failed = run("pull", "tiny", "--quiet")
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert "404" in failed.stderr


PULL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun with it ignored
from streamproc.networks import manifest
own, entry = manifest.load_manifest(), manifest.ModelEntry.model_validate_json(sys.argv[1])
whole = manifest.Manifest(format_version=1, models=(*own.models, entry))
manifest.load_manifest = lambda: whole
from streamproc.cli import main
sys.argv = ["streamproc", "models", "pull", "tiny"]
main()
"""


def test_a_stopped_pull_says_that_it_can_go_on(server, entry, tmp_path) -> None:
    half_is_out = threading.Event()

    def half(handler):
        answer(handler, body=CONTENT[:HALF], Content_Length=len(CONTENT))
        handler.wfile.flush()
        half_is_out.set()
        server.closing.wait(30)

    server.routes["/tiny.pth"] = half
    environment = os.environ | {"STREAMPROC_CACHE_FOLDER": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PULL, entry.model_dump_json()]
    pull = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert half_is_out.wait(30)
    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=30)
    assert pull.returncode == 130
    assert "the same command goes on from here" in said
    assert files(tmp_path) == ["tiny.pth.part"]
