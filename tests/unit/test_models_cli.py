"""`streamproc models`: downloads that are cut off, ignore ranges, bring wrong files or none."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import threading

import pytest
from click.testing import CliRunner
from media_servers import Server, answer, status, whole
from programs import command, environment

from streamproc.cli import cli
from streamproc.errors import MachineError, WeightsError
from streamproc.networks import manifest
from streamproc.networks.download import ATTEMPTS, Download
from streamproc.networks.manifest import Manifest, ModelEntry
from streamproc.reid.export import DEFAULT_NAME

CONTENT = bytes(range(256)) * 4000
HALF = len(CONTENT) // 2


@pytest.fixture
def server():
    """An HTTP server that answers as the test says."""
    running = Server()
    yield running
    running.close()


@pytest.fixture
def entry(server):
    """The entry of a model called tiny, which `server` has."""
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
    """What runs `streamproc models ...`, with `entry` beside the package's own models.

    The cache is below tmp_path.
    """
    own = manifest.load_manifest()
    monkeypatch.setattr(
        manifest, "load_manifest", lambda: Manifest(format_version=1, models=(*own.models, entry))
    )
    monkeypatch.setenv("STREAMPROC_CACHE_FOLDER", str(tmp_path / "cache"))

    def run_models(*words):
        return CliRunner().invoke(cli, ["models", *map(str, words)])

    return run_models


class Ranges:
    """Answers ranges as RFC 9110 says, and notes the ranges asked for.

    Each of `cuts` is the number of bytes after which a connection breaks.
    """

    def __init__(self, content=CONTENT, cuts=(), etag='"1"'):
        self.content = content
        self.cuts = list(cuts)
        self.etag = etag
        self.asked = []

    def __call__(self, handler):
        """Answer one request."""
        wanted = handler.headers.get("Range")
        condition = handler.headers.get("If-Range")
        self.asked.append((wanted, condition))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(self.content):
            answer(handler, 416)
            return
        ranged = wanted is not None and condition in {None, self.etag}
        size = len(self.content)
        body = self.content[start:] if ranged else self.content
        headers = {"Content_Length": len(body), "ETag": self.etag}
        if ranged:
            headers["Content_Range"] = f"bytes {start}-{size - 1}/{size}"
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        answer(handler, 206 if ranged else 200, body, **headers)


def files(folder):
    """The names of all files below a folder, sorted."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def fetch(entry, folder, **options):
    """Download `entry` into `folder`, check the file and the progress, and return the waits."""
    waits = []
    seen = []
    path = Download(
        entry, folder, lambda *now: seen.append(now), wait=waits.append, **options
    ).run()
    assert path.read_bytes() == CONTENT
    assert files(folder) == ["tiny.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    return waits


def test_a_file_is_fetched_checked_and_named(server, entry, tmp_path) -> None:
    """A file is fetched into a new folder under its name, without a wait."""
    server.routes["/tiny.pth"] = whole(CONTENT)
    assert fetch(entry, tmp_path / "new" / "folder") == []


def test_a_download_goes_on_where_it_was_cut_off(server, entry, tmp_path) -> None:
    """A download that is cut off asks for the rest, and waits longer each time."""
    server.routes["/tiny.pth"] = ranges = Ranges(cuts=[1000, 500])
    assert fetch(entry, tmp_path) == [1, 2], "it waits longer each time"
    assert ranges.asked == [(None, None), ("bytes=1000-", '"1"'), ("bytes=1500-", '"1"')]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, entry, tmp_path) -> None:
    """A file whose ETag changed between two parts is fetched from its start."""
    ranges = Ranges(cuts=[1000])

    def changing(handler):
        ranges(handler)
        ranges.etag = '"2"'

    server.routes["/tiny.pth"] = changing
    fetch(entry, tmp_path)
    assert len(ranges.asked) == 2


def test_a_later_call_goes_on_with_what_an_earlier_one_left(server, entry, tmp_path) -> None:
    """A part left by an earlier call is completed by a range."""
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT[:HALF])
    server.routes["/tiny.pth"] = ranges = Ranges()
    fetch(entry, tmp_path)
    assert ranges.asked == [(f"bytes={HALF}-", None)]


@pytest.mark.parametrize("size_known", [True, False])
def test_what_is_whole_already_is_only_checked(server, entry, tmp_path, size_known) -> None:
    """A part that is the whole file needs no request, or one where the size is unknown."""
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT)
    server.routes["/tiny.pth"] = ranges = Ranges()
    entry = entry if size_known else entry.model_copy(update={"size_bytes": None})
    assert Download(entry, tmp_path).run().read_bytes() == CONTENT
    assert len(ranges.asked) == (0 if size_known else 1)


@pytest.mark.parametrize("left", [b"x" * HALF, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)])
def test_remains_of_another_file_are_thrown_away(server, entry, tmp_path, left) -> None:
    """A part of another file is replaced by the right file."""
    (tmp_path / "tiny.pth.part").write_bytes(left)
    server.routes["/tiny.pth"] = Ranges()
    fetch(entry, tmp_path)


def test_a_server_that_ignores_ranges_sends_everything_again(server, entry, tmp_path) -> None:
    """A server that ignores ranges sends the whole file, which replaces the part."""
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT[:HALF])
    server.routes["/tiny.pth"] = whole(CONTENT)
    fetch(entry, tmp_path)


def test_a_size_that_nobody_says_is_no_hindrance(server, entry, tmp_path) -> None:
    """A file whose size neither the manifest nor the server tells is fetched."""
    server.routes["/tiny.pth"] = lambda handler: answer(handler, body=CONTENT)
    path = Download(entry.model_copy(update={"size_bytes": None}), tmp_path).run()
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "wrong", [CONTENT[:-1] + b"x", CONTENT + b"more", b""], ids=["altered", "longer", "empty"]
)
@pytest.mark.parametrize("size_known", [True, False])
def test_wrong_content_leaves_nothing(server, entry, tmp_path, wrong, size_known) -> None:
    """Content of another hash is refused and removed; an empty answer counts as cut off."""
    server.routes["/tiny.pth"] = whole(wrong)
    entry = entry if size_known else entry.model_copy(update={"size_bytes": None})
    short = size_known and not wrong
    with pytest.raises(
        MachineError if short else WeightsError, match="cut off" if short else "nothing was kept"
    ):
        Download(entry, tmp_path, wait=lambda _: None).run()
    assert files(tmp_path) == (["tiny.pth.part"] if short else [])


def test_a_file_that_is_not_there_is_said_at_once(server, entry, tmp_path) -> None:
    """A 404 raises a WeightsError after one request and leaves no file."""
    with pytest.raises(WeightsError, match="the server says 404"):
        Download(entry, tmp_path, wait=pytest.fail).run()
    assert server.asked == ["/tiny.pth"]
    assert files(tmp_path) == []


def test_a_server_in_trouble_is_asked_again_and_then_given_up(server, entry, tmp_path) -> None:
    """A 503 is tried again with doubled waits, and then raises a MachineError."""
    server.routes["/tiny.pth"] = status(503)
    waits = []
    with pytest.raises(MachineError, match=f"503 .*, {ATTEMPTS} times; run it again"):
        Download(entry, tmp_path, wait=waits.append).run()
    assert waits == [1, 2, 4, 8]


def test_a_server_that_falls_silent_is_left(server, entry, tmp_path) -> None:
    """A server that sends no more raises a MachineError after the timeout."""

    def silent(handler):
        answer(handler, body=CONTENT[:10], Content_Length=len(CONTENT))
        server.closing.wait(5)

    server.routes["/tiny.pth"] = silent
    with pytest.raises(MachineError, match="timed out"):
        Download(entry, tmp_path, wait=lambda _: None, timeout_seconds=0.05).run()


def test_nobody_listens(server, entry, tmp_path) -> None:
    """A refused connection raises a MachineError."""
    away = entry.model_copy(update={"url": "http://127.0.0.1:9/tiny.pth"})
    with pytest.raises(MachineError, match="Connection refused"):
        Download(away, tmp_path, wait=lambda _: None).run()


def test_two_at_once_do_not_write_into_one_file(server, entry, tmp_path) -> None:
    """A second download of the same file is refused while the first one runs."""
    begun = threading.Event()
    go_on = threading.Event()

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
    """A folder that cannot be made raises a MachineError."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot be written"):
        Download(entry, tmp_path / "file" / "folder").run()


def test_pull_then_path_list_and_verify(server, run, tmp_path) -> None:
    """`pull` fetches a model once, and then `path`, `verify` and `list` find it."""
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
    """The default weights are there without a download."""
    assert f"{DEFAULT_NAME}\tok\t" in run("verify", DEFAULT_NAME).stdout
    assert run("pull", DEFAULT_NAME).exit_code == 0
    assert f"{DEFAULT_NAME}\t" in run("list").stdout


def test_an_altered_file_is_wrong_until_it_is_pulled_again(server, run, tmp_path) -> None:
    """`verify` reports an altered file, and `pull` replaces it."""
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
    """`pull --to` fills a folder that is searched once STREAMPROC_MODELS names it."""
    server.routes["/tiny.pth"] = whole(CONTENT)
    offline = tmp_path / "offline"
    assert run("pull", "tiny", "--to", offline).stdout == f"{offline / 'tiny.pth'}\n"
    assert run("path", "tiny").exit_code == 1
    monkeypatch.setenv("STREAMPROC_MODELS", str(offline))
    assert run("path", "tiny").stdout == f"{offline / 'tiny.pth'}\n"


def test_somebodys_own_file_is_not_written_over(server, run, tmp_path) -> None:
    """`pull --to` refuses to replace another file of the same name."""
    (tmp_path / "tiny.pth").write_bytes(b"own")
    refused = run("pull", "tiny", "--to", tmp_path)
    assert refused.exit_code == 2
    assert "move it away first" in refused.stderr
    assert (tmp_path / "tiny.pth").read_bytes() == b"own"


@pytest.mark.parametrize("subcommand", ["pull", "verify", "path"])
def test_an_unknown_name_is_a_usage_error_that_lists_the_known(run, subcommand) -> None:
    """An unknown model is a usage error of one line that lists the known names."""
    refused = run(subcommand, "osnet")
    assert refused.exit_code == 2
    assert f"no weights are called 'osnet': expected one of {DEFAULT_NAME}" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_failed_pull_is_one_line_and_exit_code_1(run) -> None:
    """A failed download ends with one line and exit code 1."""
    failed = run("pull", "tiny", "--quiet")
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert "404" in failed.stderr


def test_a_stopped_pull_says_that_it_can_go_on(server, entry, tmp_path) -> None:
    """An interrupted pull exits with 130, keeps its part and says how to go on."""
    half_is_out = threading.Event()

    def half(handler):
        answer(handler, body=CONTENT[:HALF], Content_Length=len(CONTENT))
        handler.wfile.flush()
        half_is_out.set()
        server.closing.wait(30)

    server.routes["/tiny.pth"] = half
    pull = subprocess.Popen(
        command("pull_a_model.py", entry.model_dump_json()),
        env=environment(STREAMPROC_CACHE_FOLDER=str(tmp_path / "cache")),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert half_is_out.wait(30)
    pull.send_signal(signal.SIGINT)
    _, said = pull.communicate(timeout=30)
    assert pull.returncode == 130
    assert "the same command goes on from here" in said
    assert files(tmp_path) == ["tiny.pth.part"]
