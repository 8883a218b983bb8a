"""Whether a video will end in time is said once, after its first minute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from streamproc.pipeline.resources import VideoStats
from streamproc.services.worker import _Work, forecast_seconds


def work(*, time_limit_seconds=1000.0, done=100, planned=10_000):
    """A video whose decoding began at second 5."""
    event = SimpleNamespace(video_uri="v.mp4")
    begun = _Work(SimpleNamespace(event=event, time_limit_seconds=time_limit_seconds), 1)
    begun.decoding_since = 5.0
    begun.stats.frames_done = done
    begun.stats.frames_planned = planned
    return begun


def test_a_video_that_takes_too_long_is_warned_of_once() -> None:
    """100 of 10,000 frames in a minute are 6,000 s for all."""
    slow = work()
    assert slow.warn_if_too_slow(64.9) is None
    warning = slow.warn_if_too_slow(65.0)
    assert warning.code == "time-limit"
    assert "100 of 10000 frames in 60 s: all would take about 6000 s" in warning.text
    assert "1000 s" in warning.text
    assert slow.warn_if_too_slow(66.0) is None


@pytest.mark.parametrize("done", [0, 700, 10_000])
def test_a_video_in_time_is_not_warned_of(done) -> None:
    """Nor is one of which no frame is done: nobody knows how long it will take."""
    assert work(done=done).warn_if_too_slow(65.0) is None


def test_one_that_waits_for_its_turn_is_not_warned_of() -> None:
    """Only the time of decoding counts."""
    waiting = work()
    waiting.decoding_since = None
    assert waiting.warn_if_too_slow(1e6) is None


def test_the_forecast_goes_by_frames() -> None:
    """The other frames take as long as those that are done."""
    assert forecast_seconds(VideoStats(frames_planned=30, frames_done=10), 2.0) == 6.0
    assert forecast_seconds(VideoStats(frames_planned=30), 2.0) is None
