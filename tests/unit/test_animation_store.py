"""Where animations go: whole files, safe names that differ, and one error a kind of fault."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pytest
from fsspec.registry import _registry
from hypothesis import example, given
from hypothesis import strategies as st
from programs import run_program

from streamproc.errors import MachineError, UsageError
from streamproc.storage.animations import AnimationStore
from streamproc.storage.outputs import safe_name

CONTENT = b"RIFF webp"
RUN = "0123456789abcdef"


def files(folder):
    """The paths of all files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def path_of(stored):
    """The local path that a stored file's URI leads to."""
    return Path(unquote(urlsplit(stored.uri).path))


def test_a_folder_gets_whole_files_and_says_what_they_are(tmp_path):
    """A file in a folder has the stored content, URI, sha256 and size."""
    store = AnimationStore(str(tmp_path / "my out"))
    store.check()
    stored = store.write("clip", RUN, 7, CONTENT)
    assert stored.uri == (tmp_path / "my out" / "clip" / RUN / "person_7.webp").as_uri()
    assert path_of(stored).read_bytes() == CONTENT
    assert stored.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert stored.size_bytes == len(CONTENT)
    assert files(tmp_path) == {f"my out/clip/{RUN}/person_7.webp"}


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path):
    """Writing a file again replaces it under the same URI and leaves no other file."""
    store = AnimationStore(tmp_path.as_uri())
    first = store.write("clip", RUN, -1, CONTENT)
    assert store.write("clip", RUN, -1, CONTENT) == first
    assert store.write("clip", RUN, -1, b"longer than before").uri == first.uri
    assert path_of(first).read_bytes() == b"longer than before"
    assert files(tmp_path) == {f"clip/{RUN}/person_-1.webp"}


def test_a_file_below_the_media_root_has_a_uri_relative_to_it(tmp_path):
    """Below the media root the URI is relative to it, elsewhere it is a file URI."""
    (tmp_path / "media").mkdir()
    (tmp_path / "link").symlink_to("media")
    inside = AnimationStore(str(tmp_path / "link" / "my out"), media_root=tmp_path / "media")
    assert inside.write("clip", RUN, 1, CONTENT).uri == f"my%20out/clip/{RUN}/person_1.webp"
    outside = AnimationStore(str(tmp_path / "out"), media_root=tmp_path / "media")
    assert outside.write("clip", RUN, 1, CONTENT).uri.startswith("file:///")


def test_files_are_for_others_to_read(tmp_path):
    """A stored file has the mode that any new file has."""
    (tmp_path / "plain").touch()
    stored = AnimationStore(str(tmp_path)).write("clip", RUN, 1, CONTENT)
    assert path_of(stored).stat().st_mode == (tmp_path / "plain").stat().st_mode


@given(st.text())
@example("")
@example(".")
@example("..")
@example("../../etc")
@example("/etc")
@example(".hidden")
@example("a\0b")
@example("~")
@example("ü/ü")
@example("\ud800")
@example("x" * 1000)
def test_every_id_is_asafe_name(text):
    """Every id becomes a short name of safe characters without a leading dot."""
    name = safe_name(text)
    assert 0 < len(name) <= 120
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.~")
    assert not name.startswith(".")


@given(st.text("a.~/2E-\\", max_size=5) | st.text(), st.text("a.~/2E-\\", max_size=5) | st.text())
@example("~2E", ".")
@example("", "~")
@example("x" * 200, "x" * 201)
def test_two_ids_never_have_one_name(one, other):
    """Two ids have one name only if they are equal."""
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_plain_ids_stay_as_they_are():
    """An id of plain characters is its own name."""
    assert safe_name("lobby_2.cam-1") == "lobby_2.cam-1"


def test_ids_cannot_climb_out(tmp_path):
    """Ids with dots and slashes stay below the folder."""
    AnimationStore(str(tmp_path / "out")).write("../../up", "..", 1, CONTENT)
    assert files(tmp_path) == {"out/~2E.~2F..~2Fup/~2E./person_1.webp"}


def test_a_full_disk_is_the_machines_fault_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    """A full disk raises a MachineError, and the earlier file stays as it was."""
    store = AnimationStore(str(tmp_path))
    stored = store.write("clip", RUN, 1, CONTENT)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        store.write("clip", RUN, 1, b"new")
    with pytest.raises(UsageError, match=r"animator\.output_uri.*No space left"):
        store.check()
    assert path_of(stored).read_bytes() == CONTENT
    assert files(tmp_path) == {f"clip/{RUN}/person_1.webp"}


def test_check_says_at_the_start_that_a_place_cannot_be_written(tmp_path):
    """`check` raises a usage error where `write` would raise a MachineError."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError) as raised:
        AnimationStore(str(tmp_path / "file" / "out")).check()
    assert "\n" not in str(raised.value)
    with pytest.raises(MachineError):
        AnimationStore(str(tmp_path / "file" / "out")).write("clip", RUN, 1, CONTENT)


@pytest.mark.parametrize("uri", ["", "file://host/folder", "nonsense://x", "file:relative"])
def test_a_uri_that_means_nothing_is_a_usage_error(uri, monkeypatch, tmp_path):
    """A URI that is no place to write is a usage error that names the setting."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"animator\.output_uri"):
        AnimationStore(uri)


def test_any_fsspec_store_will_do():
    """Any store that fsspec knows can be written."""
    store = AnimationStore("memory://animations/a/")
    store.check()
    stored = store.write("a/b", RUN, 1, CONTENT)
    assert stored.uri == f"memory://animations/a/a~2Fb/{RUN}/person_1.webp"
    assert fsspec.filesystem("memory").cat_file(stored.uri) == CONTENT
    assert fsspec.filesystem("memory").find("/animations") == [
        f"/animations/a/a~2Fb/{RUN}/person_1.webp"
    ]


def test_a_store_that_is_not_there_is_the_machines_fault(monkeypatch):
    """A store that cannot be reached raises a MachineError of one line.

    So it does whatever its client raises: botocore's exceptions are no OSError.
    """
    pytest.importorskip("s3fs", reason="needs the extra s3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    store = AnimationStore("s3://animations/a", s3_endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.raises(MachineError) as raised:
        store.write("clip", RUN, 1, CONTENT)
    assert "\n" not in str(raised.value)


def test_a_folder_needs_no_fsspec_and_no_pillow(tmp_path):
    """A store in a folder imports neither fsspec nor Pillow."""
    done = run_program("open_animation_folder.py", tmp_path)
    assert done.stdout == "False False\n", done.stderr


def test_many_threads_may_write_at_once(tmp_path):
    """Sixteen threads that write four files leave those four whole files."""
    store = AnimationStore(str(tmp_path))
    threads = [
        threading.Thread(target=store.write, args=("clip", RUN, i % 4, CONTENT)) for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == {f"clip/{RUN}/person_{i}.webp" for i in range(4)}


def test_missing_s3fs_names_the_extra(monkeypatch):
    """Without s3fs an S3 URI is a usage error that names the extra."""
    monkeypatch.delitem(_registry, "s3", raising=False)  # it may have been imported before
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"streamproc\[s3\]"):
        AnimationStore("s3://bucket/prefix")


def test_s3(monkeypatch):
    """In S3 a missing bucket fails the check, and a file is written once under its URI."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    moto = pytest.importorskip(
        "moto.server", reason="needs moto[server], which is among the development tools"
    )
    for name, value in {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = AnimationStore("s3://animations/a", s3_endpoint_url=f"http://{host}:{port}")
        with pytest.raises(UsageError, match=r"animator\.output_uri"):
            store.check()
        store._files._fs.mkdir("animations")
        store.check()
        stored = store.write("clip", RUN, 1, CONTENT)
        assert store.write("clip", RUN, 1, CONTENT) == stored
        assert stored.uri == f"s3://animations/a/clip/{RUN}/person_1.webp"
        assert store._files._fs.cat_file(stored.uri) == CONTENT
        assert store._files._fs.find("animations") == [f"animations/a/clip/{RUN}/person_1.webp"]
    finally:
        server.stop()


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    """Whoever may write beside the animations cannot have them written elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "animations").mkdir()
    (tmp_path / "animations" / "v").symlink_to(elsewhere)
    store = AnimationStore(str(tmp_path / "animations"))
    with pytest.raises(MachineError, match="link"):
        store.write("v", "r", 1, b"webp")
    assert not list(elsewhere.iterdir())


def test_animations_are_removed_after_their_time(tmp_path):
    """Old ones go with the folders that they leave empty; new ones and other files stay."""
    store = AnimationStore(str(tmp_path))
    for run_id, person_id in (("old", 1), ("old", 2), ("new", 1)):
        store.write("v", run_id, person_id, b"webp")
    (tmp_path / "v" / "old" / "mine.txt").touch()
    for path in (tmp_path / "v" / "old").iterdir():
        os.utime(path, (1000, 1000))
    written = (tmp_path / "v" / "new" / "person_1.webp").stat().st_mtime
    assert store.remove_older_than(3600, written) == 2
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert left == {"v/old/mine.txt", "v/new/person_1.webp"}
    assert store.remove_older_than(3600, written + 3601) == 1
    assert not (tmp_path / "v" / "new").exists()


@pytest.mark.parametrize("place", ["media/animations", "media", "elsewhere"])
def test_what_was_written_is_read_by_its_uri_and_nothing_else(tmp_path, place):
    """Also where the store is the media root itself, or outside of it; links are not followed."""
    media = tmp_path / "media"
    media.mkdir()
    folder = tmp_path / place
    store = AnimationStore(str(folder), media_root=media)
    stored = store.write("a video/1", "run", -7, b"RIFF")
    assert store.read(stored.uri) == b"RIFF"
    secret = tmp_path / "media" / "secret.webp"
    secret.write_bytes(b"secret")
    path = next(folder.glob("*/*/person_-7.webp"))
    path.with_name("person_1.webp").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    uris = [
        stored.uri.replace("person_-7", "person_1"),
        stored.uri.replace("person_-7", "person_2"),
        stored.uri.replace("run/", "../run/"),
        secret.as_uri(),
        "secret.webp",
        "out/media/person_1.webp",
        f"{folder.as_uri()}/../media/secret.webp",
        "s3://bucket/a/run/person_1.webp",
        "",
    ]
    assert [store.read(uri) for uri in uris] == [None] * len(uris)


def test_an_object_store_gives_back_what_was_written():
    """By the URI that the event names; another bucket's is not read."""
    store = AnimationStore("memory://animations")
    stored = store.write("v", "run", 1, b"RIFF")
    strip = store.write_strip("v", "run", 1, b"RIFF of crops")
    assert store.read(stored.uri) == b"RIFF"
    assert store.read(strip.uri) == b"RIFF of crops"
    assert strip.uri == stored.uri.replace(".webp", ".crops.webp")
    assert store.read(stored.uri.replace("person_1", "person_2")) is None
    assert store.read("memory://others/v/run/person_1.webp") is None


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_who_is_forgotten_goes_and_comes_back_with_a_later_run(tmp_path, place):
    """Files of one person or of all go; a run from before leaves them out, a later one does not."""
    uri = str(tmp_path) if place == "folder" else f"memory://forget{os.getpid()}"
    store = AnimationStore(uri)

    def write(run=RUN):
        return {number: store.write("a/b", run, number, CONTENT).uri for number in (1, 2, -3)}

    def left(uris):
        return {number for number, name in uris.items() if store._files.read(_place(store, name))}

    uris = write()
    other = store.write("other", RUN, 1, CONTENT)
    assert store.forget("a/b", {1, 77}, at_ms=1000, written_until=time.time() + 60) == 1
    assert left(uris) == {2, -3}
    write()
    assert store.leave_out("a/b", RUN, 1001) == 0
    assert left(uris) == {1, 2, -3}
    assert store.leave_out("a/b", RUN, 1000) == 1
    assert left(uris) == {2, -3}
    assert store.forget("a/b", None, at_ms=2000, written_until=0) == 0
    assert left(uris) == {2, -3}
    assert store.forget("a/b", None, at_ms=2000, written_until=time.time() + 60) == 2
    write("another")
    assert store.leave_out("a/b", "another", 1500) == 3
    assert store._files.read(_place(store, other.uri)) == CONTENT
    assert store.leave_out("other", RUN, 0) == 0
    store.remove_older_than(60, time.time() + 120)
    assert not files(tmp_path)


def _place(store, uri):
    """The path of a file below its place."""
    relative = store._files.relative_of(uri)
    assert relative is not None
    return relative


def test_where_nobody_may_read_who_was_forgotten_nobody_was(tmp_path, monkeypatch):
    """Credentials that may only write go on as before."""
    store = AnimationStore("memory://forget-unread")
    store.write("v", RUN, 1, CONTENT)

    def refuse(*_args, **_options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(store._files._fs, "cat_file", refuse)
    assert store.leave_out("v", RUN, 0) == 0
    with pytest.raises(MachineError, match="cannot be read"):
        store.forget("v", None, at_ms=1, written_until=0)
