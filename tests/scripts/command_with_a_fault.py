"""Ends a command by an error that nobody expected."""

from __future__ import annotations

import sys

from streamproc.cli import last_resort


def fail() -> None:
    """Raise what no command raises on purpose."""
    raise ZeroDivisionError("a fault\nof two lines")


sys.exit(last_resort.run(fail))
