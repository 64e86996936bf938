"""`ziphius chat`: a plain conversation in the terminal, thinking shown dimmed as it comes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ziphius.checkpoint.folder import load_model
from ziphius.engine.engine import Engine
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.text.detokenise import Detokeniser
from ziphius.text.tokenizer import Tokenizer


def converse(
    folder: Path, question: str | None, temperature: float, max_new_tokens: int, thinking: bool, seed: int
) -> None:
    """Answer `question`, or question after question until the input ends. Raises ValueError for a wrong folder."""
    folder = model_folder(folder)
    tokenizer = Tokenizer.load(folder)
    engine = Engine(load_model(folder), tokenizer, EngineSettings(max_rows=1))
    settings = SamplingSettings(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    console = Console(highlight=False)
    if question is not None:
        answer(engine, tokenizer, [{"role": "user", "content": question}], settings, thinking, console)
        return
    console.print(f"[dim]{folder}; Ctrl-C stops an answer, an empty line or Ctrl-D ends.[/]")
    messages: list[dict[str, str]] = []
    while text := _read(console):
        messages.append({"role": "user", "content": text})
        reply = answer(engine, tokenizer, messages, settings, thinking, console)
        messages.append({"role": "assistant", "content": reply})


def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
    settings: SamplingSettings,
    thinking: bool,
    console: Console,
) -> str:
    """Print a reply to `messages` as it is sampled, and return the answer without its thinking."""
    prompt = tokenizer.encode(tokenizer.render(messages, thinking=thinking))
    screen = _Screen(tokenizer, console, thinking)
    id = engine.add(Request(prompt, settings, thinking=thinking))
    try:
        while engine.has_work:
            for update in engine.step():
                if update.error is not None:
                    raise RuntimeError(update.error)
                screen.show(update.token_ids)
    except KeyboardInterrupt:
        engine.cancel(id)
        engine.updates()
    screen.finish()
    return screen.reply


class _Screen:
    """Prints thinking and answer, each without the whitespace around it."""

    def __init__(self, tokenizer: Tokenizer, console: Console, thinking: bool) -> None:
        self.console, self.tokenizer = console, tokenizer
        self.reply = ""
        self._thinking = thinking
        self._detokeniser = Detokeniser(tokenizer)
        self._begun = False
        self._space = ""

    def show(self, tokens: list[int]) -> None:
        for token in tokens:
            if self._thinking and token == self.tokenizer.end_think_id:
                self._end_part()
                self._thinking = False
            elif token not in (self.tokenizer.eos_id, self.tokenizer.think_id):
                self._print(self._detokeniser.push([token]))

    def finish(self) -> None:
        self._print(self._detokeniser.finish())
        self._end_part()
        self.reply = self.reply.strip()
        if not self.reply:
            self.console.print("(no answer within the limit; raise --max-new-tokens)", style="bold")

    def _print(self, text: str) -> None:
        if not self._thinking:
            self.reply += text
        text = self._space + text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._begun = True
            style = "dim italic" if self._thinking else "bold"
            self.console.print(shown, style=style, end="", markup=False, soft_wrap=True)

    def _end_part(self) -> None:
        if self._begun:
            self.console.print()
        self._begun, self._space = False, ""


def model_folder(folder: Path) -> Path:
    """`folder` itself, or the last trained stage of a run folder."""
    if (folder / "stages").is_dir():
        trained = sorted(path.parent for path in (folder / "stages").glob("*/config.json"))
        if not trained:
            raise ValueError(f"{folder}: no stage of this run has written a model yet")
        return trained[-1]
    return folder


def _read(console: Console) -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except EOFError:
        return ""
