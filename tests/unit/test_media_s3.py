"""Videos from S3: from moto where it is installed, and from a server that misbehaves."""

from __future__ import annotations

import pytest
from media_servers import (
    CONTENT,
    SHA256,
    accesses,
    after,
    answer,
    cut_off,
    in_turn,
    never,
    read,
    refusal,
    whole,
)

from streamproc.errors import MachineError, UsageError
from streamproc.storage.media import MediaStoppedError


@pytest.fixture
def access(root, tmp_path, server):
    """What makes a MediaAccess that may ask `server`."""
    with accesses(root, tmp_path / "tmp", server.host) as make:
        yield make


@pytest.fixture
def credentials(monkeypatch):
    """Credentials for S3 in the environment; skips the test where s3fs is missing."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    for name, value in {
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "secret",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def s3_url():
    """A real S3 API with a bucket of two files."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    moto = pytest.importorskip(
        "moto.server", reason="needs moto[server], which is among the development tools"
    )
    made = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def bucket(s3_url, credentials):
    """A bucket with a video, its tracks, and a private video."""
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=s3_url, skip_instance_cache=True)
    fs.mkdirs("media", exist_ok=True)
    for key in ("videos/clip 1#.mp4", "videos/clip 1#.mot.txt", "private/clip.mp4"):
        fs.pipe_file(f"media/{key}", CONTENT)
    return fs


def test_s3_objects_are_fetched_from_allowed_buckets(access, s3_url, bucket):
    """An object below an allowed prefix is fetched and checked like a file over http."""
    media = access(allowed_buckets=["media/videos"], s3_endpoint_url=s3_url)
    uri = "s3://media/videos/clip 1#.mp4"
    with media.open(uri, kind="video", stop=never, sha256=SHA256, size_bytes=len(CONTENT)) as path:
        assert path.read_bytes() == CONTENT
        assert path.suffix == ".mp4"
    assert media.find_tracks(uri) == "s3://media/videos/clip 1#.mot.txt"
    assert media.find_tracks("s3://media/videos/other.mp4") is None
    assert "no such file" in refusal(media, "s3://media/videos/other.mp4")
    assert SHA256 in refusal(media, uri, sha256="0" * 64)
    assert "limits.max_file_bytes" in refusal(
        access(allowed_buckets=["media"], s3_endpoint_url=s3_url, max_file_bytes=99), uri
    )
    with pytest.raises(MediaStoppedError):
        read(media, uri, stop=after(2))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://media/private/clip.mp4",
        "s3://media/videos2/clip.mp4",
        "s3://media/videos/../private/clip.mp4",
        "s3://media/videos",
        "s3://media/videos/",
        "s3://media",
        "s3://other/videos/clip.mp4",
        "s3:media/videos/clip.mp4",
        "s3://media/videos/clip.mp4?versionId=1",
        "s3://arn:aws:s3:us-east-1:1:accesspoint/media/videos/clip.mp4",
    ],
)
def test_s3_objects_elsewhere_are_refused(access, server, credentials, uri):
    """An address outside the allowed prefix is refused without a request."""
    refusal(access(allowed_buckets=["media/videos/"], s3_endpoint_url=server.url), uri)
    assert server.asked == []


def test_without_allowed_buckets_s3_is_refused(access):
    """Without allowed buckets every S3 address is refused with the setting's name."""
    assert "remote.allowed_buckets" in refusal(access(), "s3://media/clip.mp4")


def test_faults_of_s3(access, server, credentials):
    """Passing faults are tried again, and wrong credentials are the machine's fault."""

    def fault(code, name):
        body = f"<Error><Code>{name}</Code><Message>no</Message></Error>".encode()
        return lambda handler: answer(handler, code, body, Content_Length=len(body))

    media = access(allowed_buckets=["media"], s3_endpoint_url=server.url)
    server.routes["/media/clip.mp4"] = in_turn(fault(503, "SlowDown"), cut_off, whole())
    assert read(media, "s3://media/clip.mp4", sha256=SHA256) == CONTENT
    assert len(server.asked) == 3
    server.routes["/media/clip.mp4"] = fault(500, "InternalError")
    assert "3 attempts" in refusal(media, "s3://media/clip.mp4", MachineError)
    assert len(server.asked) == 6
    server.routes["/media/clip.mp4"] = fault(403, "InvalidAccessKeyId")
    assert "credentials" in refusal(media, "s3://media/clip.mp4", MachineError)
    server.routes["/media/clip.mp4"] = fault(403, "AccessDenied")
    assert "AccessDenied" in refusal(media, "s3://media/clip.mp4")
    assert len(server.asked) == 8


def test_missing_s3fs_and_bad_buckets_and_endpoints_are_usage_errors(access, monkeypatch):
    """A bad endpoint, a bad bucket and a missing s3fs are usage errors with the remedy."""
    for change in (
        {"s3_endpoint_url": "minio:9000"},
        {"allowed_buckets": ["*"]},
        {"allowed_buckets": [""]},
    ):
        with pytest.raises(UsageError, match=r"remote\."):
            access(**change)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"streamproc\[s3\]"):
        access(allowed_buckets=["media"])
