"""What all commands have in common: exit codes, `--config`, and how an error ends a command."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.errors import StreamprocError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = "Exit codes: 0 done, 1 failure, 2 usage, 4 done in part, 130 interrupted."

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="STREAMPROC_CONFIG",
    help="Settings file (YAML).",
)


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """If streamproc raises an error of its own, end the process with one line and an exit code."""
    try:
        yield
    except StreamprocError as error:
        click.echo(f"streamproc: {' '.join(str(error).split())}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
