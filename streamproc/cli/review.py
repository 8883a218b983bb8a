"""The command `streamproc review`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamproc.cli.common import EXIT_CODES, NamedPath, faults_in_one_line

if TYPE_CHECKING:
    from pathlib import Path

_MAX_PORT = 65535


@click.command(epilog=EXIT_CODES)
@click.argument("output", type=NamedPath())
@click.option(
    "--port",
    type=click.IntRange(0, _MAX_PORT),
    help="Where the page is served on 127.0.0.1; 0 is any free one. [default: 8080]",
)
def review(output: Path, port: int | None) -> None:
    """Decide about the candidates of OUTPUT, a folder of `streamproc replay`, in a browser.

    The decisions go to decisions.jsonl in OUTPUT. Ctrl-C ends it.
    """
    import asyncio
    import signal

    from streamproc.services.review import DEFAULT_PORT, ReviewServer

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        server = ReviewServer(output, DEFAULT_PORT if port is None else port)
        async with server.serve() as address:
            click.echo(f"review at {address}; Ctrl-C ends it", err=True)
            await stop.wait()

    with faults_in_one_line():
        asyncio.run(run())
