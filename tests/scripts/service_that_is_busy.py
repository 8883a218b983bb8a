"""Runs a service without Kafka whose work, once it has begun, does not end: `loop` or `thread`.

With `end`, the work ends, and Python takes a second to take its modules down.
"""

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from streamproc.services.service import Service
from streamproc.settings import load_settings


async def main(what: str, grace_seconds: float) -> None:
    """Serve, and be busy in the event loop or in a thread that Python waits for at its end."""
    flags = {"service.http_port": 0, "service.grace_seconds": grace_seconds}
    service = Service("worker", load_settings(flags, config_file=None))

    async def work() -> None:
        await service.listening.wait()
        print("busy", flush=True)
        if what == "loop":
            time.sleep(600)  # noqa: ASYNC251 - it is to block the loop
        if what == "thread":
            await asyncio.get_running_loop().run_in_executor(
                ThreadPoolExecutor(1), threading.Event().wait
            )
        await service.stop.wait()

    await service.run(work)


class SlowToGo:
    """Takes a second to go, once Python has given the signals their defaults again."""

    def __del__(self, say=print, sleep=time.sleep) -> None:
        """Say so, and wait."""
        say("going", flush=True)
        sleep(1)


if sys.argv[1] == "end":
    slow = SlowToGo()
asyncio.run(main(sys.argv[1], float(sys.argv[2])))
