"""What all services have in common: signals, logs, and an HTTP server for health and metrics."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from streamproc.errors import MachineError
from streamproc.kafka.readiness import Readiness
from streamproc.services.hosts import check_host
from streamproc.services.logs import set_up_logs
from streamproc.services.signals import StopSignals
from streamproc.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from streamproc.settings import Settings

log = logging.getLogger(__name__)

PORTS = {"worker": 8081, "matcher": 8082, "animator": 8083, "review": 8084}
_GIVE_UP_SHARE = 0.9
"""Of the grace time: then the work is cancelled. The rest is for leaving in order."""
_ANSWER_SECONDS = 1.0
"""How long HTTP requests may go on when the work has ended."""


class Service:
    """One service process. Used by one event loop.

    Its work ends when `stop` is set, sets `ready` while it takes records, counts in `registry`, and
    may add `routes` to the HTTP server. `listening` is set once that server answers at `port`.

    The first SIGTERM or SIGINT sets `stop`: the work finishes within the grace time, or is
    cancelled shortly before its end. A second one ends the process at once; see `signals`. Nothing
    is lost either way: what was not acknowledged comes again.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings
        self.stop = asyncio.Event()
        self.ready = Readiness()
        self.registry = CollectorRegistry()
        self.routes: list[web.RouteDef] = []
        self.listening = asyncio.Event()
        self.port = 0
        self.dead_letters = Counter(
            "streamproc_dead_letters",
            "Records sent to dead-letters",
            ["code"],
            registry=self.registry,
        )
        labels = ["service", "version"]
        info = Gauge("streamproc_info", "Version", labels, registry=self.registry)
        info.labels(name, __version__).set(1)

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until it ends or a signal ends it; raises what `work` raised."""
        set_up_logs(self.settings.service, self.name)
        task = asyncio.ensure_future(work())
        grace_seconds = self.settings.service.grace_seconds
        StopSignals(lambda: self._interrupt(task), grace_seconds=grace_seconds).listen()
        try:
            runner = await self._serve()
        except MachineError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        try:
            await task
        except asyncio.CancelledError:
            log.warning("stopped by force: what was not finished comes again")
        finally:
            self.ready.clear("stopping")
            await runner.cleanup()
            log.info("%s has stopped", self.name)

    def _interrupt(self, task: asyncio.Future[None]) -> None:
        self.stop.set()
        give_up_seconds = _GIVE_UP_SHARE * self.settings.service.grace_seconds
        asyncio.get_running_loop().call_later(give_up_seconds, task.cancel)

    async def _serve(self) -> web.AppRunner:
        app = web.Application(middlewares=[check_host(self._own_hosts())])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                *self.routes,
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_ANSWER_SECONDS)
        await runner.setup()
        options = self.settings.service
        port = PORTS[self.name] if options.http_port is None else options.http_port
        try:
            await web.TCPSite(runner, options.http_host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise MachineError(
                f"{options.http_host}:{port}: cannot listen there ({error.strerror}); "
                "set service.http_port (0: any)"
            ) from error
        self.port = runner.addresses[0][1]
        self.listening.set()
        log.info("%s: health and metrics at http://%s:%d", self.name, options.http_host, self.port)
        return runner

    def _own_hosts(self) -> list[str]:
        advertised = urlsplit(self.settings.matcher.advertised_url or "").hostname
        named = self.settings.service.allowed_hosts
        return [*named, advertised] if advertised else [*named]

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "service": self.name, "version": __version__})

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = "stopping" if self.stop.is_set() else self.ready.reason
        if reason is None:
            return web.json_response({"ready": True})
        return web.json_response({"ready": False, "reason": reason}, status=503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self.registry), headers={"content-type": CONTENT_TYPE_LATEST}
        )
