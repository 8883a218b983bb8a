"""Whether a service takes records now, and why not."""

from __future__ import annotations


class Readiness:
    """Set while a service takes records; while it does not, `reason` says why in one line.

    Made by the service; used by one event loop.
    """

    def __init__(self) -> None:
        self.reason: str | None = "starting"

    def is_set(self) -> bool:
        """Whether records are taken."""
        return self.reason is None

    def set(self) -> None:
        """Say that records are taken."""
        self.reason = None

    def clear(self, reason: str) -> None:
        """Say why no records are taken."""
        self.reason = reason
