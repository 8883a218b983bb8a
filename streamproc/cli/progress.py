"""Progress on stderr: a live line for each video on a terminal, else plain lines now and then."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from streamproc.offline.results import ReplayVideo

_LIVE_EVERY_SECONDS = 0.2
_PLAIN_EVERY_SECONDS = 5.0


@asynccontextmanager
async def show_progress(videos: Sequence[ReplayVideo], *, quiet: bool) -> AsyncIterator[None]:
    """Show how far each video is until the block ends; reads the stats that the pipeline writes."""
    if quiet:
        yield
        return
    task = asyncio.create_task(_live(videos) if sys.stderr.isatty() else _plain(videos))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _live(videos: Sequence[ReplayVideo]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames · {task.fields[people]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        rows = [
            progress.add_task(video.name, total=None, people=_people(video)) for video in videos
        ]
        while True:
            for row, video in zip(rows, videos, strict=True):
                progress.update(
                    row,
                    completed=video.stats.frames_done,
                    total=video.stats.frames_planned or None,
                    people=_people(video),
                )
            await asyncio.sleep(_LIVE_EVERY_SECONDS)


async def _plain(videos: Sequence[ReplayVideo]) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(_PLAIN_EVERY_SECONDS)
        for video in videos:
            stats = video.stats
            if 0 < stats.frames_done < stats.frames_planned:
                sys.stderr.write(
                    f"{video.name}: {stats.frames_done} of {stats.frames_planned} frames, "
                    f"{_people(video)}, {time.monotonic() - started:.0f} s\n"
                )
                sys.stderr.flush()


def _people(video: ReplayVideo) -> str:
    stats = video.stats
    if not stats.frames_planned:
        return "opening"
    if stats.tracks_found:
        return f"{stats.tracks_found} tracks found, {stats.persons_embedded} embedded"
    return f"{stats.persons_embedded} of {stats.persons_total} persons"
