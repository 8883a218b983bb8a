"""URIs of events as local files and back: what lies outside the media root stays outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from media_servers import CONTENT, SHA256, accesses, largest_file, never, read, refusal

from streamproc.errors import MachineError, TracksError, UsageError, VideoError
from streamproc.storage.local import LocalFiles
from streamproc.storage.media import MediaAccess, MediaStoppedError
from streamproc.tracks import TRACK_FILE_PATTERNS, find_track_file


@pytest.fixture
def access(root, tmp_path):
    """What makes a MediaAccess to the media root."""
    with accesses(root, tmp_path / "tmp") as make:
        yield make


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("a/clip.mp4", "a/clip.mp4"),
        ("./a//clip.mp4", "a/clip.mp4"),
        ("a/b/../clip.mp4", "a/clip.mp4"),
        ("my%20clip.mp4", "my clip.mp4"),
        ("my clip.mp4", "my clip.mp4"),
        ("100%.mp4", "100%.mp4"),
        ("a%2Fclip.mp4", "a/clip.mp4"),
        ("%C3%BC.mp4", "ü.mp4"),
        ("ü.mp4", "ü.mp4"),
        ("a%3Ab%3F%23.mp4", "a:b?#.mp4"),
    ],
)
def test_a_relative_uri_is_a_file_below_the_root_and_is_not_copied(access, root, uri, name):
    """A relative URI, escaped or not, opens the file itself below the root."""
    (root / "a" / "b").mkdir(parents=True)
    (root / name).write_bytes(CONTENT)
    with access().open(uri, kind="video", stop=never) as path:
        assert path == root / name
    assert (root / name).exists()


def test_absolute_paths_and_file_uris_serve_where_they_end_below_the_root(access, root):
    """Absolute paths and file URIs open a file below the root."""
    (root / "clip.mp4").write_bytes(CONTENT)
    for uri in (
        f"{root}/clip.mp4",
        f"file://{root}/clip.mp4",
        f"FILE://localhost{root}/clip.mp4",
        f"file:{root}/clip.mp4",
    ):
        assert read(access(), uri) == CONTENT


@pytest.mark.parametrize(
    "uri",
    [
        "../secret.mp4",
        "a/../../secret.mp4",
        "%2e%2e/secret.mp4",
        "..%2fsecret.mp4",
        "%2E%2E%2Fsecret.mp4",
        "{outside}/secret.mp4",
        "file://{outside}/secret.mp4",
        "file:///etc/passwd",
        "file:////etc/passwd",
        "file:../secret.mp4",
        "link.mp4",
        "folder/secret.mp4",
        "folder/../secret.mp4",
    ],
)
def test_what_lies_outside_the_root_is_refused(access, root, tmp_path, uri):
    """A URI that ends outside the root is refused with the setting's name."""
    (root / "a").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "folder").symlink_to(tmp_path)
    assert "media_root" in refusal(access(), uri.format(outside=tmp_path))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "\0",
        "clip%00.mp4",
        "..\\secret.mp4",
        "..%5Csecret.mp4",
        "C:\\secret.mp4",
        "C:/secret.mp4",
        "//host/share/clip.mp4",
        "\\\\host\\share",
        "file://host/clip.mp4",
        "ftp://host/clip.mp4",
        "concat:a.mp4|b.mp4",
        "data:,x",
        "clip.mp4?x",
        "clip.mp4#t=1",
        "\ud800.mp4",
        "a" * 5000,
        "a/" * 2500,
        "bad\nname.mp4",
    ],
)
def test_what_is_no_plain_path_is_refused_in_one_line(access, root, uri):
    """Any URI that is no plain path is refused in one line, for videos and for tracks."""
    refusal(access(), uri)
    refusal(access(), uri, TracksError, kind="tracks")


NASTY = [
    "..",
    ".",
    "/",
    "//",
    "%2e",
    "%2F",
    "%5c",
    "\\",
    "\0",
    "%00",
    "~",
    " ",
    "C:",
    "file:",
    "file://",
    "localhost",
]
NASTY += [
    "out.mp4",
    "out",
    "up",
    "in",
    "in.mp4",
    "loop",
    "fifo",
    "secret.mp4",
    "http://",
    "s3://",
    "@",
    "?",
    "#",
    "[",
    ":",
]


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A root full of ways out."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "root"
    (root / "in").mkdir(parents=True)
    (outside / "secret.mp4").write_bytes(b"secret")
    (root / "in.mp4").write_bytes(b"inside")
    (root / "in" / "in.mp4").write_bytes(b"inside")
    (root / "out.mp4").symlink_to("../secret.mp4")
    (root / "in" / "out.mp4").symlink_to("../../secret.mp4")
    (root / "up").symlink_to("..")
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    return root


@given(st.lists(st.sampled_from(NASTY) | st.text(max_size=3), max_size=9).map("".join))
@example("in/out.mp4")
@example("up/root/in.mp4")
@example("out/secret.mp4")
def test_no_uri_ever_opens_anything_outside_the_root(trap, uri):
    """No combination of odd parts opens a file outside the root, or takes several lines."""
    access = MediaAccess(media_root=trap, max_file_bytes=100)
    try:
        with access.open(uri, kind="video", stop=never) as path:
            assert path.read_bytes() == b"inside"
            assert path.resolve().is_relative_to(trap)
    except VideoError as error:
        assert "\n" not in str(error)
    try:
        assert access.find_tracks(uri) is None
    except VideoError as error:
        assert "\n" not in str(error)


def test_a_root_that_is_a_link_is_followed_at_each_call(tmp_path):
    """A media root that is a link is resolved again at each call."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_text(name)
    (tmp_path / "media").symlink_to("one")
    access = MediaAccess(media_root=tmp_path / "media", max_file_bytes=100)
    assert read(access, "clip.mp4") == b"one"
    (tmp_path / "media").unlink()
    (tmp_path / "media").symlink_to("two")
    assert read(access, "clip.mp4") == b"two"


def test_folders_pipes_and_missing_files_are_refused_without_opening_them(access, root):
    """Folders, pipes and missing files are refused with the reason."""
    os.mkfifo(root / "pipe.mp4")
    assert "plain file" in refusal(access(), "pipe.mp4")
    assert "plain file" in refusal(access(), ".")
    assert "no such file" in refusal(access(), "missing.mp4")
    assert "no such file" in refusal(access(), "missing.npz", TracksError, kind="tracks")


def test_size_checksum_and_limit_of_a_local_file(access, root):
    """A local file is checked for its size, its sha256 and the limit, and `stop` ends that."""
    (root / "clip.mp4").write_bytes(CONTENT)
    assert read(access(), "clip.mp4", sha256=SHA256.upper(), size_bytes=len(CONTENT)) == CONTENT
    assert SHA256 in refusal(access(), "clip.mp4", sha256="0" * 64)
    assert "256,000" in refusal(access(), "clip.mp4", size_bytes=5)
    assert "limits.max_file_bytes" in refusal(access(max_file_bytes=len(CONTENT) - 1), "clip.mp4")
    with pytest.raises(MediaStoppedError):
        read(access(), "clip.mp4", sha256=SHA256, stop=lambda: True)


def test_the_names_looked_for_on_servers_are_those_of_find_track_file(monkeypatch):
    """The track names tried on servers are those that `find_track_file` looks for."""
    asked = []
    monkeypatch.setattr(Path, "is_file", lambda path: bool(asked.append(path.name)))
    assert find_track_file(Path("folder/clip.v2.mp4")) is None
    assert asked == [pattern.format(stem="clip.v2") for pattern in TRACK_FILE_PATTERNS]


def test_tracks_beside_a_local_video(access, root, tmp_path):
    """A track file beside a local video is found as a URI, and never outside the root."""
    (root / "a b").mkdir()
    assert access().find_tracks("a%20b/clip.mp4") is None
    (root / "a b" / "clip.mot.txt").write_text("1")
    assert access().find_tracks("a%20b/clip.mp4") == "a%20b/clip.mot.txt"
    assert read(access(), "a%20b/clip.mot.txt", kind="tracks") == b"1"
    (root / "link.mp4").symlink_to("a b/clip.mp4")
    assert access().find_tracks("link.mp4") is None
    (tmp_path / "clip.persons.npz").write_bytes(b"secret")
    for uri in ("../clip.mp4", f"{tmp_path}/clip.mp4", "", ".", "/"):
        with pytest.raises(VideoError):
            access().find_tracks(uri)


@given(
    st.text(
        st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]),
        min_size=1,
        max_size=20,
    )
)
@example("a:b?c#d%41 ü.mp4")
@example("~")
def test_a_relative_uri_leads_back_to_its_file(trap, name):
    """The relative URI of a path is ASCII and leads back to that path."""
    if name in {".", ".."}:
        return
    path = trap / "in" / name
    access = MediaAccess(media_root=trap, max_file_bytes=100)
    uri = access.relative_uri(path)
    assert uri.isascii()
    assert access._local._path_of(uri) == path.resolve() or path.is_symlink()


def test_a_path_outside_the_root_has_no_relative_uri(access, root, tmp_path):
    """A path outside the root, or with a backslash, is refused with the remedy."""
    (root / "link.mp4").symlink_to(tmp_path / "clip.mp4")
    for path in (tmp_path / "clip.mp4", root, root / ".." / "clip.mp4", root / "link.mp4"):
        with pytest.raises(UsageError, match="--copy"):
            access().relative_uri(path)
    with pytest.raises(UsageError, match="rename"):
        access().relative_uri(root / "a\\b.mp4")


def test_copy_into_gives_the_same_file_the_same_place(access, root, tmp_path):
    """Copying the same file again gives the same URI, and other content another one."""
    clip = tmp_path / "my clip.mp4"
    clip.write_bytes(CONTENT)
    uri = access().copy_into(clip)
    assert uri == f"incoming/{SHA256[:16]}/my%20clip.mp4"
    assert access().copy_into(clip) == uri
    assert access().copy_into(root / "incoming" / SHA256[:16] / "my clip.mp4") == uri
    assert read(access(), uri, sha256=SHA256) == CONTENT
    clip.write_bytes(b"other")
    assert access().copy_into(clip) != uri
    assert (
        root / "incoming" / SHA256[:16] / "my clip.mp4"
    ).stat().st_mode & 0o777 == clip.stat().st_mode & 0o777
    assert not list((root / "incoming").glob(".*"))


def test_copy_into_leaves_nothing_half(access, root, tmp_path):
    """A copy that fails leaves no file, and what is no file is a usage error."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(CONTENT)
    with largest_file(100_000), pytest.raises(MachineError):
        access().copy_into(clip)
    assert [path for path in root.rglob("*") if path.is_file()] == []
    for path in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(UsageError):
            access().copy_into(path)


def test_a_link_in_the_place_of_a_folder_for_copies_is_not_followed(tmp_path):
    """Whoever may write below the media root cannot have copies written elsewhere."""
    root = tmp_path / "media"
    elsewhere = tmp_path / "elsewhere"
    for folder in (root, elsewhere):
        folder.mkdir()
    (root / "incoming").symlink_to(elsewhere)
    video = tmp_path / "v.mp4"
    video.write_bytes(b"video")
    with pytest.raises(MachineError, match="link"):
        LocalFiles(root).copy_into(video)
    assert not list(elsewhere.iterdir())
