"""The command `streamproc merge`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click

from streamproc.cli.common import EXIT_CODES, EXIT_PARTIAL, NamedPath, faults_in_one_line
from streamproc.cli.stream import common_options, run, settings_of
from streamproc.files import on_one_line
from streamproc.types import WrittenFormat

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.offline.merge import Merged

_MAX_CONFLICTS_SHOWN = 20


@click.command(epilog=EXIT_CODES)
@click.argument("output", type=NamedPath(), required=False)
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
@click.option("--gallery", help="In place of OUTPUT: this gallery of the stream.")
@click.option("--url", default="http://127.0.0.1:8082", show_default=True, help="Any matcher.")
@common_options
def merge(
    output: Path | None,
    to: Path | None,
    written: WrittenFormat | None,
    *,
    decisions: Path | None,
    likely: bool,
    selected: bool,
    dry_run: bool,
    gallery: str | None,
    url: str,
    **options: Any,
) -> None:
    """Write the tracks of OUTPUT, a folder of `streamproc replay`, under the decided identities.

    Only what a reviewer decided is joined. With --gallery the decisions are those of the stream,
    and the tracks are read again as the videos' announcements named them.
    """
    from streamproc.errors import UsageError
    from streamproc.offline.merge import merge_folder, write

    with faults_in_one_line():
        if to is None and not dry_run:
            raise UsageError("expected a file to write to: -o merged.txt, or --dry-run")
        if (output is None) == (gallery is None):
            raise UsageError("expected a folder of `streamproc replay`, or --gallery NAME")
        if gallery is not None and decisions is not None:
            raise UsageError("--gallery: expected no --decisions with it: those of the stream hold")
    if output is not None:
        with faults_in_one_line():
            merged = merge_folder(
                output, decisions=decisions, with_likely=likely, only_selected=selected
            )
    else:
        assert gallery is not None
        merged = run(
            _merge_gallery(gallery, url, options, with_likely=likely, only_selected=selected)
        )
    with faults_in_one_line():
        paths = []
        if to is not None and not dry_run:
            paths = write(merged, to, written, with_folder=gallery is not None)
    _print(merged, paths, likely=likely)
    sys.exit(EXIT_PARTIAL if merged.conflicts or merged.missing else 0)


async def _merge_gallery(
    gallery: str, url: str, options: dict[str, Any], *, with_likely: bool, only_selected: bool
) -> Merged:
    import asyncio
    from dataclasses import replace

    from streamproc.kafka import client
    from streamproc.offline.merge import merge_gallery
    from streamproc.offline.parts import in_parts
    from streamproc.offline.stream_tracks import StreamTracks, tracks_of_video
    from streamproc.storage.media import media_access

    settings = settings_of(options)
    said = await client.fetch_identities(gallery, url, with_candidates=with_likely)
    announced = await client.gallery_videos(settings, gallery)
    media = media_access(settings)
    whole = [await asyncio.to_thread(tracks_of_video, media, *both) for both in announced]
    videos = [
        replace(one, tracks=tuple(in_parts(one.tracks, said.cuts.get(one.video_id, {}))))
        for one in whole
    ]
    text = "its `video-ready` is not on the topic any more"
    known = {event.video_id for event, _ in announced}
    videos += [
        StreamTracks(video_id, video_id, missing=text)
        for video_id in said.video_ids
        if video_id not in known
    ]
    return merge_gallery(
        gallery,
        said.identities,
        videos,
        decision_count=said.decision_count,
        candidates=said.candidates,
        apart=said.apart,
        only_selected=only_selected,
    )


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
    for reason in merged.missing:
        click.echo(f"left out: {on_one_line(reason)}", err=True)
    left = len(merged.conflicts) - _MAX_CONFLICTS_SHOWN
    if left > 0:
        click.echo(f"and {left} conflicts more", err=True)
