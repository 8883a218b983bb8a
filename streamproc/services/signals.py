"""How SIGTERM and SIGINT end a service: the first one in order, the second one at once."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import select
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_LAST_SECONDS = 2.0
"""So long after the grace time the process ends, whatever is left."""
SIGNALLED = 128
"""A process that a signal ended has this exit code, and the signal's number added."""


class StopSignals:
    """Hears the signals of this process in a thread of its own, from `listen` on.

    The event loop may be busy, and a thread may hang: Python would handle a signal, and asyncio
    tell of it, only afterwards. This thread calls `on_first` in the loop, and at the second signal,
    or once the grace time is over, ends the process with exit code 143, or 130 for SIGINT.
    """

    def __init__(self, on_first: Callable[[], None], *, grace_seconds: float) -> None:
        self._on_first = on_first
        self._grace_seconds = grace_seconds

    def listen(self) -> None:
        """Begin; call it in the main thread, from the running loop."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # The number of each signal is written there at once, whatever the main thread does.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in _NUMBERS:
            signal.signal(number, _do_nothing)
        # While Python takes its modules down, it would give signals their default again: one that
        # comes that late would end a process that has done its work with a signal's exit code.
        atexit.register(_ignore_signals)
        thread = threading.Thread(
            target=self._run, args=(reading, asyncio.get_running_loop()), daemon=True
        )
        thread.start()

    def _run(self, reading: int, loop: asyncio.AbstractEventLoop) -> None:
        first = _next_number(reading, None)
        assert first is not None  # as there is no limit of time
        log.info("stopping: finishing what has begun, for at most %.0f s", self._grace_seconds)
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(self._on_first)
        second = _next_number(reading, self._grace_seconds + _LAST_SECONDS)
        why = "it did not end within the grace time" if second is None else "stopped by force"
        os.write(2, f"{why}: what was not finished comes again\n".encode())
        os._exit(SIGNALLED + (second or first))


def _do_nothing(_number: int, _frame: object) -> None:
    """Take the place of the default, which ends the process."""


def _ignore_signals() -> None:
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _next_number(reading: int, seconds: float | None) -> int | None:
    """Wait for one of the signals; None after so many seconds."""
    while select.select([reading], [], [], seconds)[0]:
        for number in os.read(reading, 1):
            if number in _NUMBERS:
                return number
    return None
