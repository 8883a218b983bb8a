"""Removes the files of a service after their time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import NoReturn

log = logging.getLogger(__name__)

_REMOVE_EVERY_SECONDS = 3600.0


class Store(Protocol):
    """Where files are kept."""

    def remove_older_than(self, seconds: float, now_seconds: float, /) -> int:
        """Remove files that were written before; return how many."""
        ...


async def remove_old_files(store: Store, what: str, *, hours: float) -> NoReturn:
    """Remove files after so many hours, for ever, by a clock that cannot jump.

    `what` names them in the log.
    """
    start_seconds = time.time() - time.monotonic()
    seconds = hours * 3600
    while True:
        now_seconds = start_seconds + time.monotonic()
        removed = await asyncio.to_thread(store.remove_older_than, seconds, now_seconds)
        if removed:
            log.info("%d %s were older than %.0f s, and are removed", removed, what, seconds)
        await asyncio.sleep(min(_REMOVE_EVERY_SECONDS, seconds / 4))
