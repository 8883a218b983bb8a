"""What all commands have in common: exit codes, `--config`, and how an error ends a command."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from streamproc.errors import StreamprocError, UsageError
from streamproc.files import on_one_line
from streamproc.types import BoxLayout, TrackFormatName

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = "Exit codes: 0 done, 1 failure, 2 usage, 4 done in part, 130 interrupted."

MAX_NUMBER = 2**31 - 1
"""The largest number that an option takes."""


class NamedPath(click.Path):
    """A path that is not empty: Python takes an empty one for the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if not os.fspath(value):
            self.fail("expected the name of a file or folder, got an empty one", param, ctx)
        return super().convert(value, param, ctx)


_configs: list[Path | None] = []


def _remember(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Path | None:
    _configs.append(value)
    return value


def last_config() -> Path | None:
    """Return the settings file that was named, for where a command ends by an unexpected error."""
    return _configs[-1] if _configs else None


config_option = click.option(
    "--config",
    type=NamedPath(),
    envvar="STREAMPROC_CONFIG",
    callback=_remember,
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
        click.echo(f"streamproc: {on_one_line(str(error))}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE)
