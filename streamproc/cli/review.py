"""The command `streamproc review`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamproc.cli.common import EXIT_CODES, NamedPath, faults_in_one_line
from streamproc.cli.stream import common_options, run_service

if TYPE_CHECKING:
    from pathlib import Path

_MAX_PORT = 65535


@click.command(epilog=EXIT_CODES)
@click.argument("output", type=NamedPath(), required=False)
@click.option(
    "--port",
    type=click.IntRange(0, _MAX_PORT),
    help="Where the page is served; 0 is any free one. [default: 8080]",
)
@common_options
@click.option(
    "--http-port",
    type=click.IntRange(0, _MAX_PORT),
    help="Health and metrics of the live page; 0: any. [default: 8084]",
)
def review(output: Path | None, port: int | None, **options: Any) -> None:
    """Decide about the candidates of OUTPUT, a folder of `streamproc replay`, in a browser.

    The decisions go to decisions.jsonl in OUTPUT. Without OUTPUT it is a service: the live page of
    the stream, whose decisions go to the topic `review-decisions`. Ctrl-C ends it.
    """
    if output is not None:
        _review_folder(output, port)
        return
    from streamproc.services.live.service import run_review

    flags = {"review.port": port, "service.http_port": options.pop("http_port")}
    run_service(options, run_review, **flags)


def _review_folder(output: Path, port: int | None) -> None:
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
