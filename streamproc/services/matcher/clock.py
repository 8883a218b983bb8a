"""The time by which galleries expire: one that a jump of this machine's clock cannot move."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamproc.services.matcher.table import OwnedGallery

_LOG_APPEND_TIME = 1
_DAY_MS = 24 * 3600 * 1000
_LEAST_AT_ONCE = 10
_SHARE_AT_ONCE = 0.1


@dataclass(frozen=True, slots=True)
class SteadyClock:
    """This machine's time when the process began, and how long it has run since."""

    start_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    start_ns: int = field(default_factory=time.monotonic_ns)

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return self.start_ms + (time.monotonic_ns() - self.start_ns) // 1_000_000

    def time_ms_of(self, message: Any) -> int:
        """Return when a message of Faust's came, by the broker's clock where that wrote it down."""
        if message.timestamp_type == _LOG_APPEND_TIME and message.timestamp:
            return int(message.timestamp * 1000)
        return self.now_ms()


def is_expired(owned: OwnedGallery, now_ms: int, expiry_seconds: float) -> bool:
    """Whether a gallery has had no event for its time."""
    return owned.last_event_ms + expiry_seconds * 1000 < now_ms


def to_expire(
    galleries: Iterable[OwnedGallery], now_ms: int, expiry_seconds: float
) -> tuple[list[OwnedGallery], int]:
    """Return the galleries to expire now, and how many more are due.

    Those that have been silent for longest, and of many galleries at most a tenth at once: where
    much expires at the same time, it is rather the clock that is wrong.
    """
    known = list(galleries)
    due = [owned for owned in known if is_expired(owned, now_ms, expiry_seconds)]
    due.sort(key=lambda owned: owned.last_event_ms)
    count = max(_LEAST_AT_ONCE, int(_SHARE_AT_ONCE * len(known)))
    return due[:count], len(due[count:])


def are_decisions_over(owned: OwnedGallery, now_ms: int, keep_days: float | None) -> bool:
    """Whether the time is over for which the decisions on a gallery that is gone are kept."""
    return (
        keep_days is not None
        and owned.is_empty
        and owned.last_decision_ms + keep_days * _DAY_MS < now_ms
    )
