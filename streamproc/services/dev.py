"""`streamproc dev`: worker, matcher, animator and the live page in one terminal.

It starts a Kafka broker of its own unless the settings name one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from streamproc.kafka.local_broker import LocalBroker, find_jars, free_port
from streamproc.kafka.topics import ensure_topics

if TYPE_CHECKING:
    from pathlib import Path

    from streamproc.settings import Settings

SERVICES = ("worker", "matcher", "animator", "review")
_USUAL_PORT = 9092
_RESTART_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""How long to wait before a service is started again, by how often it died in a row."""
_STEADY_SECONDS = 30.0
"""A service that ran for so long did not die in a row."""
_EXIT_USAGE = 2
"""The exit code of a usage error: to start the service again would give the same."""


async def run_dev(settings: Settings, *, folder: Path, config_file: Path | None) -> None:
    """Run until Ctrl-C or SIGTERM, then stop all that was started; restart a service that dies.

    `folder` holds Kafka's data and the matcher's state. Raises UsageError if no Kafka can be had,
    MachineError if it does not start.
    """
    broker = None
    if "bootstrap" not in settings.model_fields_set:
        jars = find_jars(settings.expanded_cache_folder())
        broker = LocalBroker(jars, folder / "kafka", port=free_port(_USUAL_PORT))
        _say(f"starting Kafka, its data in {folder / 'kafka'}")
        await asyncio.to_thread(broker.start)
        settings = settings.model_copy(update={"bootstrap": (broker.bootstrap,)})
    try:
        settings.media_root.mkdir(parents=True, exist_ok=True)
        await ensure_topics(settings)
        _say_what_next(settings)
        await _run_services(_environment(settings, folder, config_file))
    finally:
        if broker is not None:
            await asyncio.to_thread(broker.stop)


def _environment(settings: Settings, folder: Path, config_file: Path | None) -> dict[str, str]:
    own = {
        "STREAMPROC_BOOTSTRAP": ",".join(settings.bootstrap),
        "STREAMPROC_MEDIA_ROOT": str(settings.media_root),
        "PYTHONUNBUFFERED": "1",
    }
    if "state_folder" not in settings.matcher.model_fields_set:
        own["STREAMPROC_MATCHER__STATE_FOLDER"] = str(folder / "matcher")
    if config_file is not None:
        own["STREAMPROC_CONFIG"] = str(config_file)
    return os.environ | own


async def _run_services(environment: dict[str, str]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        for name in SERVICES:
            group.create_task(_keep_running(name, environment, stop))


async def _keep_running(name: str, environment: dict[str, str], stop: asyncio.Event) -> None:
    """Run one service until `stop`; start it again if it died, but not after a usage error."""
    deaths = 0
    while not stop.is_set():
        start_seconds = time.monotonic()
        code = await _run_service(name, environment, stop)
        if stop.is_set():
            return
        if code == _EXIT_USAGE:
            _say(f"{name} ended with code {code}: see its last line; stopping")
            stop.set()
            return
        if time.monotonic() - start_seconds > _STEADY_SECONDS:
            deaths = 0
        wait_seconds = _RESTART_SECONDS[min(deaths, len(_RESTART_SECONDS) - 1)]
        deaths += 1
        _say(f"{name} died (code {code}); starting it again in {wait_seconds:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait_seconds)


async def _run_service(name: str, environment: dict[str, str], stop: asyncio.Event) -> int:
    # A session of its own: Ctrl-C reaches only this process, which then stops the services once.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "streamproc",
        name,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    stopping = asyncio.create_task(_stop_on(stop, process))
    try:
        async for line in process.stderr:
            _say(f"{name:8} {line.decode(errors='replace').rstrip()}")
        return await process.wait()
    finally:
        stopping.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _stop_on(stop: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    await stop.wait()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()


def _say_what_next(settings: Settings) -> None:
    address = ",".join(settings.bootstrap)
    (default,) = type(settings).model_fields["bootstrap"].default
    flag = "" if address == default else f" --bootstrap {address}"
    root = settings.media_root
    _say(
        f"Kafka at {address}; put videos with their tracks under {root}/, "
        "then in another terminal:\n"
        f"    streamproc submit {root}/video.mp4{flag}\n"
        f"    streamproc watch{flag}\n"
        f"and decide at http://{settings.review.host}:{settings.review.port}/\n"
        "Ctrl-C here stops everything."
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
