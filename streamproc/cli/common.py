"""What all commands have in common: exit codes, `--config`, and how an error ends a command."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from streamproc.errors import StreamprocError, UsageError
from streamproc.types import BoxLayout, TrackFormatName

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


Command = Any  # click's decorators lose the function's type


def tracks_options(function: Command) -> Command:
    """Add the options that say how a track file is written, where it does not say so itself."""
    tracks_format = click.option(
        "--tracks-format",
        type=click.Choice(get_args(TrackFormatName)),
        help="Format of the track file or folder. [default: recognised by its content]",
    )
    boxes = click.option(
        "--boxes",
        type=click.Choice(get_args(BoxLayout)),
        help="What a box's four numbers are: corners, or left top corner or centre and size. "
        "[default: as the format says]",
    )
    normalised = click.option(
        "--normalised", is_flag=True, help="The boxes are shares of the picture's size."
    )
    return tracks_format(boxes(normalised(function)))


@contextmanager
def faults_in_one_line() -> Iterator[None]:
    """If streamproc raises an error of its own, end the process with one line and an exit code."""
    try:
        yield
    except StreamprocError as error:
        click.echo(f"streamproc: {' '.join(str(error).split())}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
