"""Logs of the services: one line an event, as text or JSON.

Each line names the video, the gallery and the run that it is about.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import orjson

from streamproc.events import timestamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamproc.settings import ServiceSettings

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def log_about(**ids: str | None) -> Iterator[None]:
    """Add `video_id`, `gallery_id` or `run_id` to log lines inside, and of tasks begun inside."""
    given = {name: value for name, value in ids.items() if value}
    token = _about.set((_about.get() or {}) | given)
    try:
        yield
    finally:
        _about.reset(token)


def set_up_logs(settings: ServiceSettings, service: str) -> None:
    """Send the process's logs to stderr as the settings say; only warnings of other libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(service) if settings.log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("streamproc").setLevel(settings.log_level)
    # aiokafka reports each attempt of each client to connect: dozens a second while a broker is
    # away. The services report it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _utc(record: logging.LogRecord) -> str:
    return timestamp_of(record.created * 1000)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        about = "".join(f" {name}={value}" for name, value in (_about.get() or {}).items())
        line = f"{_utc(record)} {record.levelname.lower()} {record.getMessage()}{about}"
        if record.exc_info:
            return f"{line}\n{self.formatException(record.exc_info)}"
        return line


class _Json(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()
