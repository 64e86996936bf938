"""`ziphius chat`: a plain conversation in the terminal, thinking shown dimmed."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from ziphius.checkpoint.folder import load_model
from ziphius.engine.sampler import sample
from ziphius.engine.settings import SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.text.chat import split_thinking
from ziphius.text.tokenizer import Tokenizer


def converse(
    folder: Path, question: str | None, temperature: float, max_new_tokens: int, thinking: bool, seed: int
) -> None:
    """Answer `question`, or question after question until the input ends. Raises ValueError for a wrong folder."""
    folder = model_folder(folder)
    tokenizer, model = Tokenizer.load(folder), load_model(folder)
    settings = SamplingSettings(temperature=temperature, max_new_tokens=max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    console = Console()
    if question is not None:
        answer(model, tokenizer, [{"role": "user", "content": question}], settings, generator, thinking, console)
        return
    console.print(f"[dim]{folder}; an empty line or Ctrl-D ends.[/]")
    messages: list[dict[str, str]] = []
    while text := _read(console):
        messages.append({"role": "user", "content": text})
        reply = answer(model, tokenizer, messages, settings, generator, thinking, console)
        messages.append({"role": "assistant", "content": reply})


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
    settings: SamplingSettings,
    generator: torch.Generator,
    thinking: bool,
    console: Console,
) -> str:
    """Sample a reply to `messages`, print it, and return the answer without its thinking."""
    prompt = tokenizer.encode(tokenizer.render(messages, thinking=thinking))
    completion = sample(model, [prompt], settings, generator, stop_id=tokenizer.eos_id)[0][0]
    text = tokenizer.decode(completion.tokens[:-1] if completion.finished else completion.tokens)
    thought, reply = split_thinking(text) if thinking else (None, text.strip())
    if thinking and thought is None:  # the limit came before the end of the thinking
        thought, reply = text.strip(), ""
    if thought:
        console.print(Text(thought.strip(), style="dim italic"))
    console.print(Text(reply or "(no answer within the limit; raise --max-new-tokens)", style="bold"))
    return reply


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
