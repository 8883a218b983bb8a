"""Videos from S3: a real S3 API where moto is there, and a server that misbehaves like one."""

from __future__ import annotations

import pytest
from media_servers import (
    CONTENT,
    SHA256,
    accesses,
    after,
    answer,
    in_turn,
    never,
    read,
    refusal,
    whole,
)

from streamproc.errors import MachineError, UsageError
from streamproc.storage.media import MediaStopped


@pytest.fixture
def access(root, tmp_path, server):
    with accesses(root, tmp_path / "tmp", server.host) as make:
        yield make


@pytest.fixture
def credentials(monkeypatch):
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
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=s3_url, skip_instance_cache=True)
    fs.mkdirs("media", exist_ok=True)
    for key in ("videos/clip 1#.mp4", "videos/clip 1#.mot.txt", "private/clip.mp4"):
        fs.pipe_file(f"media/{key}", CONTENT)
    return fs


def test_s3_objects_are_fetched_from_allowed_buckets(access, s3_url, bucket):
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
    with pytest.raises(MediaStopped):
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
    refusal(access(allowed_buckets=["media/videos/"], s3_endpoint_url=server.url), uri)
    assert server.asked == []


def test_without_allowed_buckets_s3_is_refused(access):
    assert "remote.allowed_buckets" in refusal(access(), "s3://media/clip.mp4")


def test_faults_of_s3(access, server, credentials):
    """What passes is tried again; a wrong credential is the operator's fault, not the video's."""

    def fault(code, name):
        body = f"<Error><Code>{name}</Code><Message>no</Message></Error>".encode()
        return lambda handler: answer(handler, code, body, Content_Length=len(body))

    media = access(allowed_buckets=["media"], s3_endpoint_url=server.url)
    short = lambda handler: answer(handler, body=CONTENT[:10], Content_Length=len(CONTENT))  # noqa: E731 - one of several routes
    server.routes["/media/clip.mp4"] = in_turn(fault(503, "SlowDown"), short, whole())
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
