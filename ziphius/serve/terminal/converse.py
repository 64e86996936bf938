"""`ziphius chat`: a conversation in the terminal, with a model folder or with a service."""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from ziphius.model.formats import Weights
from ziphius.serve.terminal.source import Source


def converse(
    model: str,
    question: str | None,
    settings: dict[str, Any],
    thinking: bool,
    weights: Weights = "auto",
    api_key: str | None = None,
) -> None:
    """Answer `question`, or question after question until the input ends.

    `settings` are the API's: temperature, max_tokens, seed. Raises ValueError for what cannot be asked.
    """
    source = open_source(model, settings, weights, api_key)
    console = Console(highlight=False)
    if question is not None:
        say(source, [{"role": "user", "content": question}], thinking, console)
        return
    _remember_lines()
    console.print(f"[dim]{source.what}. Ctrl-C stops an answer; an empty line or Ctrl-D ends.[/]")
    messages: list[dict[str, str]] = []
    while text := _read():
        messages.append({"role": "user", "content": text})
        try:
            answer = say(source, messages, thinking, console)
        except ValueError as error:  # what cannot be answered ends this turn, not the conversation
            console.print(str(error), style="red", markup=False)
            answer = ""
        if answer:
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.pop()  # a question without an answer would stand in the way of the next


def open_source(model: str, settings: dict[str, Any], weights: Weights, api_key: str | None) -> Source:
    """The service at an address, or the model in a folder."""
    if model.startswith(("http://", "https://")):
        from ziphius.serve.terminal.remote import Remote

        return Remote(model, settings, api_key)
    from ziphius.serve.terminal.local import Local

    return Local(Path(model), settings, weights)


def say(source: Source, messages: list[dict[str, str]], thinking: bool, console: Console) -> str:
    """Print an answer as it comes, its thinking dimmed, and return it; Ctrl-C ends it where it is."""
    answer, kind = "", "content"
    pieces = source.reply(messages, thinking)
    notes = []
    try:
        for now, text in pieces:
            if now == "note":
                notes.append(text)
                continue
            if now != kind and kind == "reasoning":
                console.print()
            kind = now
            answer += text if now == "content" else ""
            style = "dim italic" if now == "reasoning" else "bold"
            console.print(text, style=style, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/]", end="")
    finally:
        pieces.close()  # type: ignore[attr-defined]
    console.print()
    for note in notes:
        console.print(note, style="dim", markup=False)
    return answer


def _read() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
    except KeyboardInterrupt:  # at the prompt there is nothing to stop but the line
        print()
        return _read()


def _remember_lines() -> None:
    """Arrow keys bring back what was typed, in this conversation and in earlier ones."""
    with contextlib.suppress(ImportError):
        import readline

        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ziphius"
        path = state / "chat_history"
        with contextlib.suppress(OSError):
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.exists():
                readline.read_history_file(path)
        readline.set_history_length(1000)

        def keep() -> None:
            with contextlib.suppress(OSError):
                readline.write_history_file(path)

        atexit.register(keep)
