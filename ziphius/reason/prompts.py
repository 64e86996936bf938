"""Problems as token sequences: the prompt that a policy sees, and worked answers to imitate."""

from __future__ import annotations

from ziphius.tasks.base import Problem
from ziphius.text.packing import Sample
from ziphius.text.tokenizer import Tokenizer


def prompt_tokens(tokenizer: Tokenizer, problem: Problem, thinking: bool) -> list[int]:
    """The question in the chat template, ready for the answer; with `thinking` a `<think>` is already open, or the
    model opens it itself where the template has it so."""
    return tokenizer.prompt_ids(problem.prompt, thinking=thinking)


def worked_answer(trace: str | None, answer: str) -> str:
    """The assistant's text after the prompt: thinking, `</think>`, answer; the answer alone where `trace` is None."""
    return answer if trace is None else f"{trace}\n</think>\n\n{answer}"


def demonstration(tokenizer: Tokenizer, problem: Problem, trace: str | None) -> Sample:
    """Prompt and worked answer as one training sample: the answer's tokens weigh 1, the prompt's 0."""
    answer = {"role": "assistant", "content": problem.answer} | ({"reasoning_content": trace} if trace else {})
    (sample,) = tokenizer.render_training([{"role": "user", "content": problem.prompt}, answer])
    return sample
