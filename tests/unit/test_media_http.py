"""Videos from web servers: allowed hosts alone are asked, files are whole, faults told apart."""

from __future__ import annotations

import os
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from media_servers import (
    CONTENT,
    SHA256,
    accesses,
    after,
    answer,
    cut_off,
    endless,
    in_turn,
    largest_file,
    never,
    read,
    redirect,
    refusal,
    reset,
    running_server,
    status,
    whole,
)

from streamproc.errors import MachineError, TracksError, VideoError
from streamproc.storage.allowed import RefusedError
from streamproc.storage.media import MediaStoppedError


@pytest.fixture
def other_server():
    """A second server, of another host than the first."""
    with running_server() as made:
        yield made


@pytest.fixture
def access(root, tmp_path, server):
    """What makes a MediaAccess that may ask `server`."""
    with accesses(root, tmp_path / "tmp", server.host) as make:
        yield make


def test_a_remote_file_is_fetched_checked_and_removed(access, server):
    """A remote file is fetched once, keeps its name, fits its checksum and is removed after use."""
    server.routes["/a/clip.mot.txt"] = whole()
    uri = f"{server.url}/a/clip.mot.txt?signature=1"
    with access().open(
        uri, kind="tracks", stop=never, sha256=SHA256, size_bytes=len(CONTENT)
    ) as path:
        assert path.read_bytes() == CONTENT
        assert path.name == "clip.mot.txt"
    assert not path.exists()
    assert server.asked == ["/a/clip.mot.txt?signature=1"]


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fx.npz", "%00.mp4", "%2e%2e", "%F0%9F%8E%A5.mp4", "a%5Cb.mp4"]
)
def test_a_remote_name_cannot_choose_the_place(access, server, tmp_path, name):
    """The temporary copy lies two levels below the temporary folder, whatever its name is."""
    server.routes |= {f"/{name}": whole(), "/": whole()}  # the client resolves '%2e%2e'
    with access().open(f"{server.url}/{name}", kind="video", stop=never) as path:
        assert path.parent.parent == tmp_path / "tmp"
        assert path.read_bytes() == CONTENT


def test_hosts_that_are_not_allowed_are_never_asked(access, server, other_server):
    """A host that is not allowed is refused with the setting's name and gets no request."""
    for uri in (f"{server.url}/x", f"HTTP://{server.host}/x"):
        assert "remote.allowed_hosts" in refusal(access(allowed_hosts=[]), uri)
        assert "remote.allowed_hosts" in refusal(access(allowed_hosts=["127.0.0.1"]), uri)
        assert "remote.allowed_hosts" in refusal(access(allowed_hosts=[other_server.host]), uri)
    assert server.asked == other_server.asked == []


def test_a_password_in_an_address_is_refused_and_not_repeated(access, server):
    """An address with a password is refused without a request, and shows no secret."""
    text = refusal(access(), f"http://user:hunter2@{server.host}/clip.mp4?sig=hunter3")
    assert "password" in text
    assert "hunter" not in text
    assert server.asked == []


def test_redirects_are_followed_among_allowed_hosts(access, server, other_server):
    """Redirects from one allowed host to another lead to the file."""
    server.routes |= {
        "/a": redirect("/b", 301),
        "/b": redirect(f"{other_server.url}/clip.mp4", 307),
    }
    other_server.routes["/clip.mp4"] = whole()
    both = access(allowed_hosts=[server.host, other_server.host])
    assert read(both, f"{server.url}/a", sha256=SHA256) == CONTENT


def test_the_target_of_a_redirect_is_not_asked_unless_it_is_allowed(
    access, server, other_server, root
):
    """A redirect to anything that is not allowed is refused before it is followed."""
    (root / "clip.mp4").write_bytes(CONTENT)
    targets = (
        f"{other_server.url}/x",
        f"//{other_server.host}/x",
        f"http://u:p@{server.host}/x",
        f"file://{root}/clip.mp4",
        "s3://bucket/x",
        "http://169.254.169.254/latest",
        "http://[",
    )
    for target in targets:
        server.routes["/a"] = redirect(target)
        refusal(access(), f"{server.url}/a")
    assert other_server.asked == []
    assert server.asked == ["/a"] * len(targets)
    server.routes["/a"] = redirect(f"{other_server.url}/x")
    assert f"add {other_server.host} to remote.allowed_hosts" in refusal(
        access(), f"{server.url}/a"
    )


def test_endless_redirects_and_answers_that_are_no_file_are_refused(access, server):
    """Endless redirects end after ten, and a status without a file is refused."""
    server.routes |= {"/loop": redirect("/loop"), "/nowhere": status(302), "/empty": status(204)}
    assert "redirected too many times" in refusal(access(), f"{server.url}/loop")
    assert len(server.asked) == 10
    assert "status 302" in refusal(access(), f"{server.url}/nowhere")
    assert "status 204" in refusal(access(), f"{server.url}/empty")


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 418])
def test_4xx_is_refused_at_once(access, server, code):
    """A 4xx status is refused after one request."""
    server.routes["/clip.mp4"] = status(code)
    refusal(access(), f"{server.url}/clip.mp4")
    refusal(access(), f"{server.url}/clip.mp4", TracksError, kind="tracks")
    assert len(server.asked) == 2


@pytest.mark.parametrize("fault", [status(503), status(500), status(408), status(429), reset])
def test_faults_that_pass_are_tried_again(access, server, fault):
    """Temporary statuses and a broken connection are tried again until the file is there."""
    server.routes["/clip.mp4"] = in_turn(fault, fault, whole())
    assert read(access(), f"{server.url}/clip.mp4", sha256=SHA256) == CONTENT
    assert len(server.asked) == 3


def test_a_fault_that_does_not_pass_is_the_machines(access, server):
    """After three failed attempts a MachineError says so, without the address's secrets."""
    server.routes["/clip.mp4"] = status(503)
    text = refusal(access(), f"{server.url}/clip.mp4?sig=hunter2", MachineError)
    assert "3 attempts" in text
    assert "503" in text
    assert "hunter2" not in text
    assert len(server.asked) == 3


def test_a_server_that_is_not_there_or_says_nothing_is_the_machines_fault(access, server):
    """A silent server and a closed port raise a MachineError."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        text = refusal(
            access(allowed_hosts=[host], timeout_seconds=0.1),
            f"http://{host}/x?sig=hunter2",
            MachineError,
        )
        assert "hunter2" not in text
    refusal(access(allowed_hosts=[host]), f"http://{host}/x", MachineError)


def test_a_body_shorter_than_promised_is_tried_again(access, server):
    """A body that is shorter than announced is fetched again, and in the end a MachineError."""
    server.routes["/clip.mp4"] = in_turn(cut_off, whole())
    assert read(access(), f"{server.url}/clip.mp4") == CONTENT
    server.routes["/clip.mp4"] = cut_off
    refusal(access(), f"{server.url}/clip.mp4", MachineError)


def test_a_file_over_the_limit_is_given_up_whatever_was_promised(access, server):
    """A file over the limit is refused, announced or not, and one exactly on it is taken."""
    limited = access(max_file_bytes=300_000)
    server.routes |= {"/endless": endless, "/large": whole(b"x" * 300_001)}
    server.routes["/lies"] = lambda handler: answer(
        handler, body=CONTENT * 2, Content_Length=10**15
    )
    for name in ("endless", "large", "lies"):
        assert "limits.max_file_bytes" in refusal(limited, f"{server.url}/{name}")
    server.routes["/exact"] = whole(b"x" * 300_000)
    assert len(read(limited, f"{server.url}/exact")) == 300_000


def test_another_size_or_checksum_than_announced_is_refused(access, server):
    """A file of another size or sha256 than announced is refused without another request."""
    server.routes["/clip.mp4"] = whole()
    server.routes["/unsized"] = lambda handler: answer(handler, body=CONTENT)
    for name in ("clip.mp4", "unsized"):
        assert "256,000" in refusal(access(), f"{server.url}/{name}", size_bytes=256_001)
        assert SHA256 in refusal(
            access(), f"{server.url}/{name}", TracksError, kind="tracks", sha256="0" * 64
        )
    assert len(server.asked) == 4


def test_stop_ends_a_download_that_stalls_and_one_that_flows_and_the_wait_for_another_attempt(
    access, server
):
    """`stop` ends a stalled and a flowing download and a wait, and a stopped one asks nothing."""

    def stall(handler):
        answer(handler, body=CONTENT[:1000], Content_Length=len(CONTENT))
        handler.wfile.flush()
        server.closing.wait(30)

    server.routes |= {"/stall": stall, "/endless": endless, "/busy": status(503)}
    for name in ("stall", "endless", "busy"):
        with pytest.raises(MediaStoppedError):
            read(
                access(max_file_bytes=10**12, backoff_seconds=60),
                f"{server.url}/{name}",
                stop=after(6),
            )
    with pytest.raises(MediaStoppedError):
        read(access(), f"{server.url}/never-asked", stop=lambda: True)
    assert "/never-asked" not in server.asked


def test_a_full_disk_is_the_machines_fault_and_no_reason_to_fetch_again(access, server):
    """A full disk raises a MachineError after one request."""
    server.routes["/clip.mp4"] = whole()
    with largest_file(100_000):
        assert "make room" in refusal(access(), f"{server.url}/clip.mp4", MachineError)
    assert len(server.asked) == 1


def test_a_missing_temporary_folder_is_the_machines_fault(access, server, tmp_path):
    """A temporary folder that does not exist raises a MachineError."""
    refusal(access(temporary_folder=tmp_path / "missing"), f"{server.url}/clip.mp4", MachineError)


def test_many_threads_may_fetch_at_once(access, server):
    """Eight threads that share one MediaAccess each get the whole file."""
    server.routes["/clip.mp4"] = whole()
    media = access()
    results = []

    def fetch():
        results.append(read(media, f"{server.url}/clip.mp4"))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 8


def test_an_error_of_the_caller_is_left_alone(access, root, server):
    """An exception raised while the file is open reaches the caller unchanged."""
    (root / "clip.mp4").write_bytes(CONTENT)
    server.routes["/clip.mp4"] = whole()
    for uri in ("clip.mp4", f"{server.url}/clip.mp4"):
        with (
            pytest.raises(RefusedError, match="mine"),
            access().open(uri, kind="video", stop=never),
        ):
            raise RefusedError("mine")


def test_tracks_beside_a_remote_video(access, server, other_server):
    """Track files are looked for beside a remote video by GET, keeping its query."""
    uri = f"{server.url}/my%20clips/clip%201.mp4?key=1#t=5"
    assert access().find_tracks(uri) is None
    server.routes["/my%20clips/clip%201.persons.npz"] = status(403)
    server.routes["/my%20clips/clip%201.mot.txt"] = endless
    assert access().find_tracks(uri) == f"{server.url}/my%20clips/clip%201.mot.txt?key=1"
    assert not any(path.startswith("HEAD") for path in server.asked)
    server.routes["/my%20clips/clip%201.persons.npz"] = status(503)
    with pytest.raises(MachineError):
        access().find_tracks(uri)
    for refused in (f"{other_server.url}/clip.mp4", server.url, "http://", "s3://bucket/clip.mp4"):
        with pytest.raises(VideoError):
            access().find_tracks(refused)
    assert other_server.asked == []


def test_a_server_that_trickles_is_given_up(access, server):
    """A byte now and then is no answer: the slot is free again after a timeout."""

    def trickle(handler):
        answer(handler, Content_Length=10**6)
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    server.routes["/v.mp4"] = trickle
    slow = access(timeout_seconds=0.3, min_bytes_per_second=10_000)
    with pytest.raises(MachineError, match="min_bytes_per_second"):
        read(slow, f"{server.url}/v.mp4")


def test_a_file_larger_than_the_disk_is_refused_and_one_that_may_fit_later_is_not(
    access, server, monkeypatch
):
    """What can never fit is the video's fault, and the text says where more room would be."""
    server.routes["/v.mp4"] = whole()
    blocks = len(CONTENT) // 4096

    def disk_of(total, free):
        disk = SimpleNamespace(f_blocks=total, f_bavail=free, f_frsize=4096)
        monkeypatch.setattr(os, "statvfs", lambda _: disk)

    disk_of(blocks // 2, blocks // 2)
    assert "TMPDIR" in refusal(access(), f"{server.url}/v.mp4")
    disk_of(blocks * 2, blocks // 2)
    with pytest.raises(MachineError, match="make room"):
        read(access(), f"{server.url}/v.mp4")


def test_a_host_that_does_not_exist_is_refused(access, monkeypatch):
    """The name service says so; where it says nothing, that is a fault of the machine."""

    def look_up(number):
        def fail(*_, **__):
            raise socket.gaierror(number, "no answer")

        monkeypatch.setattr(socket, "getaddrinfo", fail)

    nowhere = access(allowed_hosts=["nowhere.example"])
    look_up(socket.EAI_NONAME)
    assert "no host of this name" in refusal(nowhere, "http://nowhere.example/v.mp4")
    look_up(socket.EAI_AGAIN)
    with pytest.raises(MachineError):
        read(nowhere, "http://nowhere.example/v.mp4")
