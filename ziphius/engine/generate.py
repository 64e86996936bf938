"""Answers to prompts in one call: what `ziphius.generate` is."""

from __future__ import annotations

from collections.abc import Sequence

from ziphius.engine.complete import Completion, complete, engine_for
from ziphius.engine.request import Request
from ziphius.engine.settings import SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.text.tokenizer import Tokenizer


def generate(
    model: Transformer,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    tokenizer: Tokenizer | None = None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.6,
    top_p: float = 1.0,
    seed: int = 0,
    thinking: bool = True,
) -> list[str] | list[Completion]:
    """One answer to each prompt, in order; the same seed gives the same answers.

    Questions (`str`, with a `tokenizer`) are put into the chat template and come back as texts: with `thinking`, the
    thoughts, `</think>` and the answer (`ziphius.reason.rewards.split_completion` parts them). Lists of token ids are
    continued as they stand and come back as `Completion`s: tokens with the log-probability of each.
    Temperature 0 takes the likeliest token. Raises ValueError for a prompt that is empty or does not fit the model.
    `ziphius.engine.engine.Engine` has all the settings, and streams.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; give a list of them")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts and len(texts) < len(prompts):
        raise ValueError("prompts are questions or lists of token ids, not both; ask twice")
    if texts and tokenizer is None:
        raise ValueError("prompts are texts but there is no tokenizer; give one (ziphius.Tokenizer.load(folder))")
    ids = [
        tokenizer.prompt_ids(prompt, thinking=thinking) if tokenizer is not None and isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    requests = [
        Request(
            [int(token) for token in prompt],
            SamplingSettings(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed + place),
            thinking=bool(texts) and thinking,
            stream=False,
        )
        for place, prompt in enumerate(ids)
    ]
    found = [completions[0] for completions in complete(engine_for(model, tokenizer, requests), requests)]
    if not texts or tokenizer is None:
        return found
    return [tokenizer.decode(c.tokens[:-1] if c.finished else c.tokens) for c in found]
