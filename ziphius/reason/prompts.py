"""Problems as token sequences: the prompt that a policy sees, and worked answers to imitate."""

from __future__ import annotations

from ziphius.tasks.base import Problem
from ziphius.text.packing import Sample
from ziphius.text.tokenizer import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, problem: Problem, thinking: bool) -> list[int]:
    """The question in the chat template, ready for the answer; with `thinking` the `<think>` is already open."""
    return tokenizer.prompt_ids(problem.prompt, thinking=thinking)


def worked_answer(trace: str | None, answer: str) -> str:
    """The assistant's text after the prompt: thinking, `</think>`, answer; the answer alone where `trace` is None."""
    return answer if trace is None else f"{trace}\n</think>\n\n{answer}"


def demonstration(tokenizer: Tokenizer, problem: Problem, trace: str | None) -> Sample:
    """Prompt and worked answer as one training sample: the answer's tokens weigh 1, the prompt's 0."""
    prompt = prompt_tokens(tokenizer, problem, thinking=trace is not None)
    answer = [*tokenizer.encode(worked_answer(trace, problem.answer)), tokenizer.eos_id]
    return prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)
