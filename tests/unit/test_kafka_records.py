"""Records: which headers go on to the events that follow from a record."""

from __future__ import annotations

import pytest

from streamproc.kafka.records import Record, trace_of

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(*headers) -> Record:
    """Return a record with these headers."""
    return Record("video-ready", 0, 0, 0, None, b"{}", headers)


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
