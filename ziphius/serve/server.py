"""uvicorn's server behind a door that limits connections; asked to stop, it takes no more requests."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import FrameType

import uvicorn

from ziphius.serve.app import make_app
from ziphius.serve.wire.door import Door
from ziphius.serve.wire.protocol import Guarded
from ziphius.serve.wire.service import Service


class Server(uvicorn.Server):
    """Serves `service` to those who connect to `listener`. Asked to stop, it lets requests under way end."""

    def __init__(self, service: Service, listener: socket.socket) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=settings.idle_seconds,  # type: ignore[arg-type]  # it is given to call_later
                timeout_graceful_shutdown=round(settings.drain_seconds),
            )
        )
        self.service, self.door = service, Door(listener, settings)
        service.metrics.watch_connections(self.door)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # the door accepts, not uvicorn
        make = partial(
            Guarded,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )
        self.door.start(make)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.door.close()
        await super().shutdown(sockets=[])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.draining = True
        super().handle_exit(sig, frame)
