"""Answers from a model folder, in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ziphius.checkpoint.device import load_on, pick_device
from ziphius.disk.memory import bytes_read
from ziphius.engine.complete import try_once
from ziphius.engine.engine import Engine
from ziphius.engine.settings import EngineSettings
from ziphius.ledger.model import model_folder
from ziphius.model.formats import Weights
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError, of_validation
from ziphius.serve.dialogue.ask import Limits, chat_request
from ziphius.serve.dialogue.deltas import Delta
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.serve.dialogue.prompt import Prompts
from ziphius.serve.folders import sampling_defaults
from ziphius.serve.terminal.source import Kind
from ziphius.text.tokenizer import Tokenizer


class Local:
    """A `Source`: the engine that serves, without a server."""

    def __init__(self, folder: Path, settings: dict[str, Any], weights: Weights = "auto") -> None:
        folder = model_folder(folder)
        self.what = str(folder)
        self._settings = settings
        self._tokenizer, model = Tokenizer.load(folder), load_on(folder, pick_device("auto"), weights)
        self._prompts = Prompts(self._tokenizer)
        config = model.config
        self._limits = Limits(config.max_position_embeddings, config.vocab_size, 4096, sampling_defaults(folder))
        self._engine = Engine(model, self._tokenizer, EngineSettings(max_rows=1))
        try_once(self._engine, self._tokenizer.eos_id)

    def reply(self, messages: list[dict[str, str]], thinking: bool) -> Iterator[tuple[Kind, str]]:
        try:
            asked = ChatRequest.model_validate({"model": "", "stream": True, "messages": messages} | self._settings)
        except ValidationError as error:
            raise ValueError(of_validation(error.errors()).message) from None
        prompt = self._prompts.chat(asked.messages, None if thinking else False)
        ends = self._tokenizer.next_turn
        try:
            id = self._engine.add(chat_request(asked, prompt, self._limits, ends))
        except ApiError as error:
            raise ValueError(error.message) from None
        parser = ReplyParser(self._tokenizer, bool(prompt.thinking), ends=[*self._tokenizer.eos_ids, *ends])
        began, read, tokens, reason = time.perf_counter(), bytes_read(), 0, None
        try:
            with _interrupts() as interrupted:
                while reason is None:
                    for update in self._engine.step():
                        if update.id != id:
                            continue  # the end of an answer that was stopped
                        if update.error is not None:
                            raise ValueError(update.error)
                        tokens += len(update.token_ids)
                        for token in update.token_ids:
                            parser.push(token)
                        reason = update.finish_reason
                        yield from _pieces(parser.take())
                    if interrupted.is_set():
                        raise KeyboardInterrupt
            yield from _pieces(parser.finish())
        finally:
            self._engine.cancel(id)
        for text, ids in parser.written():
            self._prompts.memory.keep(prompt.turn, text, ids)
        if reason == "length":
            yield "note", f"(cut off after {tokens} tokens; --max-new-tokens allows more)"
        from_disk = (bytes_read() - read) / 2**20 / max(tokens, 1)
        paged = f", {from_disk:,.0f} MiB read from disk a token" if from_disk >= 1 else ""
        yield "note", f"{tokens} tokens, {tokens / (time.perf_counter() - began):,.1f} a second{paged}"


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C as an event, so that it falls between two steps of the engine."""
    event = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _pieces(delta: Delta) -> Iterator[tuple[Kind, str]]:
    if delta.reasoning:
        yield "reasoning", delta.reasoning
    if delta.content:
        yield "content", delta.content
