"""Answers to prompts in one call: what `ziphius.generate` is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ziphius.engine.sampler import Completion, sample
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
    thoughts, `</think>` and the answer (`ziphius.text.chat.split_thinking` parts them). Lists of token ids are
    continued as they stand and come back as `Completion`s: tokens with the log-probability of each.
    Temperature 0 takes the likeliest token. Raises ValueError for a prompt that is empty or does not fit the model.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; give a list of them")
    settings = SamplingSettings(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(seed)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        stop = tokenizer.eos_id if tokenizer is not None else model.config.eos_token_id
        continued = [[int(token) for token in prompt] for prompt in prompts]
        found = sample(model, continued, settings, generator, stop_id=-1 if stop is None else stop)
        return [completions[0] for completions in found]
    if len(texts) < len(prompts):
        raise ValueError("prompts are questions or lists of token ids, not both; ask twice")
    if tokenizer is None:
        raise ValueError("prompts are texts but there is no tokenizer; give one (ziphius.Tokenizer.load(folder))")
    ids = [tokenizer.prompt_ids(text, thinking=thinking) for text in texts]
    found = sample(model, ids, settings, generator, stop_id=tokenizer.eos_id)
    return [_text(tokenizer, completions[0]) for completions in found]


def _text(tokenizer: Tokenizer, completion: Completion) -> str:
    return tokenizer.decode(completion.tokens[:-1] if completion.finished else completion.tokens)
