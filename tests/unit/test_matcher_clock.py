"""When galleries expire: by which time, and how many at once."""

from __future__ import annotations

import time
from types import SimpleNamespace

from streamproc.gallery import Gallery
from streamproc.services.matcher.clock import SteadyClock, to_expire
from streamproc.services.matcher.table import OwnedGallery

DAY_MS = 24 * 3600 * 1000
WEEK_SECONDS = 7 * 24 * 3600


def galleries(count, last_event_ms):
    """So many galleries, each a millisecond later than the one before."""
    return [
        OwnedGallery(Gallery(f"g{number}", max_persons=10), 0, last_event_ms + number)
        for number in range(count)
    ]


def test_a_clock_that_jumps_moves_no_time(monkeypatch):
    """Eight days that the machine's clock makes up have not passed."""
    clock = SteadyClock()
    before = clock.now_ms()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 8 * DAY_MS * 1_000_000)
    assert clock.now_ms() - before < DAY_MS


def test_the_brokers_time_goes_before_the_machines():
    """A time that the producer wrote down is not believed, that of the broker is."""
    clock = SteadyClock(start_ms=50 * DAY_MS)
    by_broker = SimpleNamespace(timestamp=7.5, timestamp_type=1)
    by_producer = SimpleNamespace(timestamp=7.5, timestamp_type=0)
    assert clock.time_ms_of(by_broker) == 7500
    assert clock.time_ms_of(by_producer) >= 50 * DAY_MS


def test_of_many_galleries_a_tenth_expires_at_once():
    """The oldest first; the others have time to be seen as a fault of the clock."""
    known = galleries(200, last_event_ms=0)
    chosen, left = to_expire(known, 8 * DAY_MS, WEEK_SECONDS)
    assert chosen == known[:20]
    assert left == 180
    assert to_expire(known, 6 * DAY_MS, WEEK_SECONDS) == ([], 0)
    few = galleries(5, last_event_ms=0)
    assert to_expire(few, 8 * DAY_MS, WEEK_SECONDS) == (few, 0)
