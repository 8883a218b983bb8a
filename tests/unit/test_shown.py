"""What is shown of values from outside holds no secret."""

from __future__ import annotations

import pytest

from streamproc.errors import EventError, UsageError
from streamproc.events import VideoReady, parse_embedded
from streamproc.settings import load_settings
from streamproc.shown import shown, shown_value, without_password
from streamproc.storage.animations import AnimationStore

SECRET = "s3cr3t"
URI = f"https://user:{SECRET}@host.example/a/v.mp4?X-Amz-Signature={SECRET}#{SECRET}"


def test_a_uri_is_shown_without_password_and_query() -> None:
    """What is left still says which file is meant."""
    assert shown(URI) == "https://…@host.example/a/v.mp4?…"
    assert without_password(URI.partition("?")[0]) == "https://host.example/a/v.mp4"


@pytest.mark.parametrize(
    "data",
    [
        b'{"video_uri": "%b' % URI.encode(),
        b'["%b"]' % URI.encode(),
        b'{"video_uri": ["%b"]}' % URI.encode(),
        b'{"video_uri": "a.mp4", "options": "%b"}' % URI.encode(),
        b'{"video_uri": "a.mp4", "video_sha256": "%b"}' % URI.encode(),
        b'"%b"' % URI.encode(),
    ],
)
def test_a_broken_event_is_described_without_its_secrets(data) -> None:
    """Neither text that is no JSON nor a value of the wrong kind is quoted as it came."""
    for parse in (VideoReady.from_json, parse_embedded):
        with pytest.raises(EventError) as caught:
            parse(data)
        assert SECRET not in str(caught.value)


def test_settings_are_described_without_secrets() -> None:
    """A password of the wrong kind is not repeated, and `run.json` masks the animator's place."""
    flags = {"kafka.sasl_password": [SECRET]}
    with pytest.raises(UsageError) as caught:
        load_settings(flags, config_file=None)
    assert SECRET not in str(caught.value)
    settings = load_settings({"animator.output_uri": URI}, config_file=None)
    assert SECRET not in str(settings.model_dump(mode="json"))
    assert settings.animator.output_uri == URI


def test_the_uri_of_an_animation_holds_no_password() -> None:
    """Events name where an animation is, and not how to get in."""
    store = AnimationStore(f"memory://user:{SECRET}@bucket")
    assert SECRET not in store.write("v", "r", 1, b"webp").uri


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5"), (None, "None"), ({}, "an object"), ([1], "a list of 1")]
)
def test_other_values_are_shown_by_kind(value, text) -> None:
    """Numbers are shown, and of what holds others only what it is."""
    assert shown_value(value) == text
