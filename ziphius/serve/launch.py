"""From a folder to a running service, and to its end."""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from ziphius.checkpoint.device import load_on, pick_device
from ziphius.checkpoint.folder import model_folder
from ziphius.engine.complete import try_once
from ziphius.engine.engine import Engine
from ziphius.engine.settings import EngineSettings
from ziphius.serve.contracts.price import Rate
from ziphius.serve.dialogue.ask import Limits
from ziphius.serve.folders import machine_price, run_of, sampling_defaults
from ziphius.serve.wire.app import make_app
from ziphius.serve.wire.keys import Keys
from ziphius.serve.wire.runner import Runner
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.settings import ServeSettings
from ziphius.text.tokenizer import Tokenizer


def launch(folder: Path, given: dict[str, Any]) -> None:
    """Serve `folder` with settings of the service and of the engine, until SIGTERM or Ctrl-C.

    Raises ValueError for settings, keys or a folder that cannot be used, OSError for an address that is taken.
    """
    folder = model_folder(folder)
    settings, engine_settings = split_settings(folder, given)
    listener = socket.create_server(
        (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET, backlog=2048
    )
    service = make_service(folder, settings, engine_settings)
    config = uvicorn.Config(
        make_app(service), log_config=None, access_log=False, timeout_graceful_shutdown=round(settings.drain_seconds)
    )
    host, port = listener.getsockname()[:2]
    _introduce(service, folder, f"http://{f'[{host}]' if ':' in host else host}:{port}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn sends itself the signal again when all is done
    Server(config, service).run(sockets=[listener])


class Server(uvicorn.Server):
    """A server that, asked to stop, takes no more requests and lets those under way end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)


def split_settings(folder: Path, given: dict[str, Any]) -> tuple[ServeSettings, EngineSettings]:
    """What was given, parted by whom it concerns; name and price come from the folder where they are not given."""
    own = {key: value for key, value in given.items() if key not in EngineSettings.model_fields}
    run = run_of(folder)
    own.setdefault("name", run.name if run is not None else folder.resolve().name)
    own.setdefault("dollars_per_hour", machine_price(folder))
    engine = {key: value for key, value in given.items() if key in EngineSettings.model_fields}
    return ServeSettings(**own), EngineSettings(**engine)


def make_service(folder: Path, settings: ServeSettings, engine_settings: EngineSettings) -> Service:
    """The model of `folder` behind an engine that has been tried once, so that the first to ask need not wait."""
    keys = Keys.load(settings.keys) if settings.keys is not None else Keys()
    rate = Rate.of(settings.dollars_per_hour, settings.price_list, date.today())
    model, tokenizer = load_on(folder, pick_device(settings.device), settings.weights), Tokenizer.load(folder)
    engine = Engine(model, tokenizer, engine_settings)
    try_once(engine, tokenizer.bos_id)
    room = engine.stats().blocks_total * engine.settings.block_size
    limits = Limits(
        context=min(model.config.max_position_embeddings, room),
        vocab_size=model.config.vocab_size,
        max_tokens=settings.max_tokens,
        defaults=sampling_defaults(folder),
    )
    return Service(settings, tokenizer, Runner(engine), limits, rate, keys)


def _introduce(service: Service, folder: Path, address: str) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("ziphius.serve").setLevel(logging.INFO)
    settings, stats = service.settings, service.runner.stats
    room = stats.blocks_total * service.runner.engine.settings.block_size  # type: ignore[attr-defined]
    body = {"model": settings.name, "messages": [{"role": "user", "content": "Hello"}]}
    key = '-H "Authorization: Bearer $KEY" ' if service.keys.hashes else ""
    where = f"{folder} on {pick_device(settings.device)}"
    print(f"{settings.name}: {where}, {service.limits.context} tokens of context, cache for {room:,} tokens")
    print(f"Chat page   {address}/")
    print(f"API         {address}/v1   metrics {address}/metrics   health {address}/health")
    curl = f"curl {address}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    print(f"Try         {curl}")
    print("Ctrl-C or SIGTERM lets the answers under way end, and stops.", flush=True)
