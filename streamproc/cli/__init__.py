"""The command line: one function a command, which parses, makes one call and gives an exit code.

Data go to stdout, progress and faults to stderr. For the exit codes see `common`, for errors
that nobody expected `last_resort`.
"""

from __future__ import annotations

import sys
from functools import partial

import click

from streamproc.cli import (
    calibrate,
    evaluate,
    forget,
    last_resort,
    merge,
    models,
    replay,
    review,
    stream,
)
from streamproc.cli.common import EXIT_CODES
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
cli.add_command(review.review)
cli.add_command(merge.merge)
cli.add_command(forget.forget)
cli.add_command(calibrate.calibrate)
cli.add_command(models.models)
for _command in stream.COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    sys.exit(last_resort.run(partial(cli.main, standalone_mode=False)))
