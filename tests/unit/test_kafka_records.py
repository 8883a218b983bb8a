"""Records: which headers go on to the events that follow from a record."""

from __future__ import annotations

import time

import pytest

from streamproc.kafka.records import Record, time_ms_of, trace_of

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(*headers, timestamp=0) -> Record:
    """Return a record with these headers."""
    return Record("video-ready", 0, 0, timestamp, None, b"{}", headers)


def test_a_trace_of_the_w3c_form_goes_on() -> None:
    """The first header of that name and form is what follows carry on."""
    other = ("traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-00")
    assert trace_of(record(("x", b"y"), ("traceparent", TRACE), other)) == TRACE


@pytest.mark.parametrize(
    "value", [b"", None, b"a" * 1_000_000, TRACE + b"0", TRACE.upper(), b"00-xyz-01"]
)
def test_a_trace_of_another_form_goes_no_further(value) -> None:
    """It would be copied to each event of a video, which Kafka then refuses."""
    assert trace_of(record(("traceparent", value))) is None


NOW_MS = time.time_ns() // 1_000_000
HOUR_AGO_MS = NOW_MS - 3_600_000


@pytest.mark.parametrize(
    "timestamp",
    [HOUR_AGO_MS, HOUR_AGO_MS // 1000, HOUR_AGO_MS * 1000, HOUR_AGO_MS * 1_000_000],
    ids=["ms", "s", "us", "ns"],
)
def test_the_time_of_a_record_may_be_of_any_unit(timestamp) -> None:
    """Seconds, milli-, micro- and nanoseconds of one time are that time, to the second."""
    assert abs(time_ms_of(record(timestamp=timestamp)) - HOUR_AGO_MS) < 1000


@pytest.mark.parametrize(
    "timestamp",
    [-1, 0, 5, 2**63 - 1, -(2**63), NOW_MS * 1000 * 10],
    ids=["missing", "zero", "five", "largest", "smallest", "in-centuries"],
)
def test_a_record_without_a_usable_time_is_of_now(timestamp) -> None:
    """A time that is missing, or of no unit, would be beyond what a date can say."""
    assert 0 <= time_ms_of(record(timestamp=timestamp)) - NOW_MS < 3_600_000
