"""The command line: one function a command, which parses, makes one call and gives an exit code.

Data go to stdout, progress and faults to stderr. For the exit codes see `common`.
"""

from __future__ import annotations

import os
import sys

import click

from streamproc.cli import calibrate, evaluate, models, replay, stream
from streamproc.cli.common import EXIT_CODES, EXIT_FAILURE
from streamproc.version import __version__


@click.group(
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="streamproc")
def cli() -> None:
    """Find the people that a tracker counted twice.

    A person decides about merging; streamproc never merges.
    """


cli.add_command(replay.replay)
cli.add_command(evaluate.evaluate)
cli.add_command(calibrate.calibrate)
cli.add_command(models.models)
for _command in stream.COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line; it is no traceback if a reader (`| head`) closes the output early."""
    try:
        cli()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
