"""The command `streamproc merge`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, get_args

import click

from streamproc.cli.common import EXIT_CODES, EXIT_PARTIAL, NamedPath, faults_in_one_line
from streamproc.files import on_one_line
from streamproc.types import WrittenFormat

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.offline.merge import Merged

_MAX_CONFLICTS_SHOWN = 20


@click.command(epilog=EXIT_CODES)
@click.argument("output", type=NamedPath())
@click.option(
    "-o",
    "--to",
    type=NamedPath(),
    help="File for the merged tracks; a folder where OUTPUT has several videos.",
)
@click.option(
    "--format",
    "written",
    type=click.Choice(get_args(WrittenFormat)),
    help="How they are written. [default: as the file's name ends; MOT text in a folder]",
)
@click.option(
    "--decisions", type=NamedPath(), help="File of decisions. [default: decisions.jsonl in OUTPUT]"
)
@click.option(
    "--likely",
    is_flag=True,
    help="Join candidates of the band `likely` too, though nobody decided them.",
)
@click.option("--selected", is_flag=True, help="Only the people who were marked as wanted.")
@click.option("--dry-run", is_flag=True, help="Say what would be merged, and write nothing.")
def merge(
    output: Path,
    to: Path | None,
    written: WrittenFormat | None,
    decisions: Path | None,
    *,
    likely: bool,
    selected: bool,
    dry_run: bool,
) -> None:
    """Write the tracks of OUTPUT, a folder of `streamproc replay`, under the decided identities.

    Only what a reviewer decided is joined.
    """
    from streamproc.errors import UsageError
    from streamproc.offline.merge import merge_folder, write

    with faults_in_one_line():
        if to is None and not dry_run:
            raise UsageError("expected a file to write to: -o merged.txt, or --dry-run")
        merged = merge_folder(
            output, decisions=decisions, with_likely=likely, only_selected=selected
        )
        paths = [] if dry_run or to is None else write(merged, to, written)
    _print(merged, paths, likely=likely)
    sys.exit(EXIT_PARTIAL if merged.conflicts else 0)


def _print(merged: Merged, paths: list[Path], *, likely: bool) -> None:
    for path in paths:
        click.echo(on_one_line(str(path)))
    count = merged.decision_count
    by = "1 decision" if count == 1 else f"{count} decisions"
    if likely:
        by += " and the likely candidates, which nobody decided"
    click.echo(
        f"{merged.track_count} tracks before, {merged.identity_count} identities after, by {by}",
        err=True,
    )
    if merged.doubled_boxes:
        click.echo(
            f"{merged.doubled_boxes} boxes were left out: their identity has a surer one in the "
            "same frame",
            err=True,
        )
    if merged.other_decision_count:
        click.echo(
            f"{merged.other_decision_count} decisions were left out: they are on other galleries",
            err=True,
        )
    for pair in merged.conflicts[:_MAX_CONFLICTS_SHOWN]:
        a, b = map(on_one_line, pair)  # whoever wrote the decisions chose the keys
        click.echo(
            f"conflict: {a} and {b} were joined and are two people: their tracks stay as they "
            "were until it is decided",
            err=True,
        )
    left = len(merged.conflicts) - _MAX_CONFLICTS_SHOWN
    if left > 0:
        click.echo(f"and {left} conflicts more", err=True)
