"""What all commands have in common: exit codes, and how an error ends a command."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from streamproc.errors import StreamprocError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_FAILURE, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 4, 130

EXIT_CODES = "Exit codes: 0 done, 1 failure, 2 usage, 4 done in part, 130 interrupted."


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """End the process with one line and an exit code where streamproc raises an error of its own."""
    try:
        yield
    except StreamprocError as error:
        click.echo(f"streamproc: {' '.join(str(error).split())}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
