"""The command `streamproc forget`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import EXIT_CODES, EXIT_PARTIAL, faults_in_one_line
from streamproc.cli.stream import common_options, run, settings_of
from streamproc.files import on_one_line

if TYPE_CHECKING:
    from streamproc.kafka.client import Held
    from streamproc.kafka.forgetting import Found
    from streamproc.settings import Settings


@click.command(epilog=EXIT_CODES)
@click.option(
    "--person",
    "persons",
    multiple=True,
    metavar="VIDEO_ID/NUMBER",
    help="A track, by its person key. May be given several times, as --identity and --video.",
)
@click.option(
    "--identity", "identities", multiple=True, metavar="ID", help="All tracks of an identity."
)
@click.option("--video", "videos", multiple=True, metavar="VIDEO_ID", help="All of a video.")
@click.option(
    "--gallery",
    help="Only in this gallery; without a person, identity or video all that it holds. "
    "[default: in every gallery]",
)
@click.option("--dry-run", is_flag=True, help="Say what is held of them, and send nothing.")
@click.option("--force", is_flag=True, help="Send it though no matcher knows the names.")
@click.option("--url", default="http://127.0.0.1:8082", show_default=True, help="Any matcher.")
@common_options
def forget(
    persons: tuple[str, ...],
    identities: tuple[str, ...],
    videos: tuple[str, ...],
    *,
    gallery: str | None,
    dry_run: bool,
    force: bool,
    url: str,
    **options: Any,
) -> None:
    """Erase people from the stream: what services hold of them, files, and decisions on them.

    A person is a track. Announcing a video again brings its people back. Files that somebody put
    into the media root, videos and their tracks, stay.
    """
    from streamproc.kafka.forgetting import Asked, find, send, unchecked, wait_until_gone

    with faults_in_one_line():
        settings = settings_of(options)
    asked = Asked(gallery, persons, identities, videos)

    async def erase() -> tuple[list[Found], list[str]]:
        found = unchecked(asked) if force else await find(settings, asked, url)
        if dry_run:
            return found, []
        await send(settings, found)
        return found, [] if force else await wait_until_gone(found, url)

    found, left = run(erase())
    for one in found:
        said = "to be forgotten" if one.held is None else _counted(one.held)
        click.echo(on_one_line(f"{one.gallery_id}: {said}"))
    if dry_run:
        return
    for gallery_id in left:
        line = f"{gallery_id}: the matcher has not done so yet; it does when it comes to it"
        click.echo(on_one_line(line), err=True)
    _say_what_stays(settings)
    sys.exit(EXIT_PARTIAL if left else 0)


def _counted(held: Held) -> str:
    counts = (
        (len(held.person_keys), "person"),
        (held.candidate_count, "candidate"),
        (held.group_count, "group"),
        (held.decision_count, "decision"),
        (held.identity_count, "identity"),
    )
    return ", ".join(f"{count} {_plural(name, count)}" for count, name in counts)


def _plural(name: str, count: int) -> str:
    if count == 1:
        return name
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"


def _say_what_stays(settings: Settings) -> None:
    """Say until when topics hold what was published before, and how people come back."""
    from streamproc.kafka.forgetting import kept_until

    click.echo("what was published before stays on the topics for their time:", err=True)
    for until, names in kept_until(settings):
        click.echo(f"  until {until:%Y-%m-%d %H:%M} UTC: {', '.join(names)}", err=True)
    click.echo("  until Kafka compacts it: identities", err=True)
    click.echo("announcing a video again brings its people back", err=True)
