"""From a folder to a running service, and to its end."""

from __future__ import annotations

import gc
import json
import signal
import socket
import sys
from datetime import date
from pathlib import Path
from typing import Any

from ziphius.checkpoint.adapted import with_adapter
from ziphius.checkpoint.device import load_on, load_stacked, pick_device
from ziphius.engine.complete import try_once
from ziphius.engine.engine import Engine
from ziphius.engine.recovery import Recovery
from ziphius.engine.settings import EngineSettings
from ziphius.ledger.model import model_folder
from ziphius.model.transformer import Transformer
from ziphius.serve.contracts.price import Rate
from ziphius.serve.dialogue.ask import Limits
from ziphius.serve.folders import example_questions, machine_price, run_of, sampling_defaults
from ziphius.serve.server import Server
from ziphius.serve.wire.allowances import Allowances
from ziphius.serve.wire.keys import Keys, WatchedKeys
from ziphius.serve.wire.log import PipeHandler, json_log
from ziphius.serve.wire.runner import Runner
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.settings import ServeSettings
from ziphius.text.tokenizer import Tokenizer

_SWITCH = 0.0005  # seconds that a thread may keep the others waiting; Python's own 0.005 adds up over an answer
_STEP_SECONDS = 0.1  # after so long at most the next to ask gets a part of the engine, where a prompt is being read


def launch(folder: Path, given: dict[str, Any]) -> None:
    """Serve `folder` with settings of the service and of the engine, until SIGTERM or Ctrl-C.

    Raises ValueError for settings, keys, an address or a folder that cannot be used.
    """
    folder = model_folder(folder)
    settings, engine_settings = split_settings(folder, given)
    listener = _listen(settings.host, settings.port)
    service = make_service(folder, settings, engine_settings)
    gc.freeze()  # the model and all modules stay: no collection looks at them again, which would stop every thread
    sys.setswitchinterval(_SWITCH)
    server = Server(service, listener)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _introduce(server, folder, address, service.runner.stats.blocks_total * engine_settings.block_size)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn sends itself the signal again when all is done
    log = PipeHandler(sys.stderr.fileno())
    service.metrics.watch_log(lambda: log.dropped)
    with json_log(log):
        server.run()


def _listen(host: str, port: int) -> socket.socket:
    """Raises ValueError for an address that cannot be had: taken, not this machine's, or forbidden."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise ValueError(f"cannot listen at {host}, port {port}: {why}; give another --port or --host") from None


def split_settings(folder: Path, given: dict[str, Any]) -> tuple[ServeSettings, EngineSettings]:
    """What was given, parted by whom it concerns; name and price come from the folder where they are not given."""
    own = {key: value for key, value in given.items() if key not in EngineSettings.model_fields}
    run = run_of(folder)
    own.setdefault("name", run.name if run is not None else folder.resolve().name)
    own.setdefault("dollars_per_hour", machine_price(folder))
    engine = {key: value for key, value in given.items() if key in EngineSettings.model_fields}
    engine.setdefault("step_seconds", _STEP_SECONDS)
    return ServeSettings(**own), EngineSettings(**engine)


def make_service(folder: Path, settings: ServeSettings, engine_settings: EngineSettings) -> Service:
    """The model of `folder` behind an engine that has been tried once, so that the first to ask need not wait."""
    keys: Keys | WatchedKeys = Keys()
    allowances = Allowances()
    if settings.keys is not None:
        keys = WatchedKeys(settings.keys)
        allowances = Allowances(settings.keys.with_name(f"{settings.keys.name}.used.json"))
    rate = Rate.of(settings.dollars_per_hour, settings.price_list, date.today())
    examples = example_questions(folder)
    if settings.adapters and settings.weights in ("int8", "fp8"):
        raise ValueError(
            f"adapters are added to weights in fp32 or bf16; leave --weights {settings.weights} out, or merge one first"
        )
    load = load_stacked if settings.adapters else load_on
    model, tokenizer = load(folder, pick_device(settings.device), settings.weights), Tokenizer.load(folder)
    engine = Engine(model, tokenizer, engine_settings)
    try_once(engine, tokenizer.eos_id)
    room = engine.stats().blocks_total * engine.settings.block_size
    limits = Limits(
        context=min(model.config.max_position_embeddings, room),
        vocab_size=model.config.vocab_size,
        max_tokens=settings.max_tokens,
        defaults=sampling_defaults(folder),
    )
    runner = Runner(Recovery(engine, tokenizer.eos_id))
    adapters = _adapters(folder, model, tokenizer, settings, engine_settings)
    return Service(settings, tokenizer, runner, limits, rate, keys, allowances, examples, adapters)


def _adapters(
    folder: Path, model: Transformer, tokenizer: Tokenizer, settings: ServeSettings, engine_settings: EngineSettings
) -> dict[str, Runner]:
    """An engine for each adapter, on the model's own tensors but for those that the adapter changes.

    Raises ValueError for an adapter of another model, or too little memory for its tensors.
    """
    runners = {}
    for name, where in settings.adapters.items():
        if name == settings.name:
            raise ValueError(f"--adapter {name}: that is the model's own name; give another, or --name")
        adapted, own_bytes = with_adapter(model, folder, model_folder(where))
        engine = Engine(adapted, tokenizer, engine_settings)
        try_once(engine, tokenizer.eos_id)
        runners[name] = Runner(Recovery(engine, tokenizer.eos_id))
        print(f"{name}: {where}, an adapter with {own_bytes / 2**30:.2f} GiB of its own and a cache like the model's")
    return runners


def _introduce(server: Server, folder: Path, address: str, room: int) -> None:
    """Say what is served and where; `room` is the cache's, in tokens."""
    service, door = server.service, server.door
    settings = service.settings
    body = {"model": settings.name, "messages": [{"role": "user", "content": "Hello"}]}
    key = '-H "Authorization: Bearer $KEY" ' if service.keys.guarded else ""
    where = f"{folder} on {pick_device(settings.device)}"
    print(f"{settings.name}: {where}, {service.limits.context} tokens of context, cache for {room:,} tokens")
    print(f"Chat page   {address}/")
    print(f"API         {address}/v1   metrics {address}/metrics   health {address}/health")
    curl = f"curl {address}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    print(f"Try         {curl}")
    print(f"Room        {door.most:,} connections, {door.most_per_address:,} from one address")
    print("Ctrl-C or SIGTERM lets the answers under way end, and stops.", flush=True)
