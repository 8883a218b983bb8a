"""Progress on stderr: a live line a video where there is a terminal, else a plain line every few seconds."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from streamproc.offline.results import Member

_LIVE_EVERY_SECONDS = 0.2
_PLAIN_EVERY_SECONDS = 5.0


@asynccontextmanager
async def show_progress(members: Sequence[Member], *, quiet: bool) -> AsyncIterator[None]:
    """Show how far each video is until the block ends; reads the stats that the pipeline writes."""
    if quiet:
        yield
        return
    task = asyncio.create_task(_live(members) if sys.stderr.isatty() else _plain(members))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _live(members: Sequence[Member]) -> None:
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
            progress.add_task(member.source.path.name, total=None, people="opening")
            for member in members
        ]
        while True:
            for row, member in zip(rows, members, strict=True):
                stats = member.stats
                progress.update(
                    row,
                    completed=stats.frames_done,
                    total=stats.frames_planned or None,
                    people=_people(member),
                )
            await asyncio.sleep(_LIVE_EVERY_SECONDS)


async def _plain(members: Sequence[Member]) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(_PLAIN_EVERY_SECONDS)
        for member in members:
            stats = member.stats
            if 0 < stats.frames_done < stats.frames_planned:
                sys.stderr.write(
                    f"{member.source.path.name}: {stats.frames_done} of {stats.frames_planned} frames, "
                    f"{_people(member)}, {time.monotonic() - started:.0f} s\n"
                )
                sys.stderr.flush()


def _people(member: Member) -> str:
    stats = member.stats
    return (
        f"{stats.persons_embedded} of {stats.persons_total} persons"
        if stats.frames_planned
        else "opening"
    )
