"""What is imitated and asked, as samples and prompts in tokens; whether they fit is known before any training."""

from __future__ import annotations

from functools import partial
from random import Random

from ziphius.reason.prompts import demonstration, prompt_tokens, worked_answer
from ziphius.recipe.inputs import chat_samples, place_of_chat
from ziphius.recipe.job import Job
from ziphius.recipe.lengths import LOOKED_AT, check_prompts, fitting
from ziphius.recipe.schema import GRPOStage, RecipeError, SFTStage
from ziphius.tasks.base import Family
from ziphius.text.packing import Sample
from ziphius.text.tokenizer import Tokenizer


def look_ahead(job: Job, tokenizer: Tokenizer) -> None:
    """Raise RecipeError, on every rank, for samples and prompts of any stage that are too long for it.

    Likewise TaskError, where a task cannot give them.
    """
    job.place.on_main(lambda: _check_lengths(job, tokenizer))


def _check_lengths(job: Job, tokenizer: Tokenizer) -> None:
    recipe = job.recipe
    limit = recipe.model.config(tokenizer.vocab_size).max_position_embeddings
    asked = recipe.evaluation
    answers = [(task, asked.split, "evaluation.max_new_tokens", asked.max_new_tokens) for task in asked.tasks]
    for name, stage in recipe.stages.items():
        if isinstance(stage, SFTStage):
            fitting_samples(job, stage, tokenizer, f"stages.{name}.seq_len")
        elif isinstance(stage, GRPOStage):
            key, most = f"stages.{name}.grpo.max_new_tokens", stage.grpo.max_new_tokens
            answers += [(task, "train", key, most) for task in stage.tasks]
    for task, split, key, most in answers:
        problems = map(partial(job.family(task).problem, split), range(LOOKED_AT))
        prompts = (prompt_tokens(tokenizer, problem, job.thinking) for problem in problems)
        check_prompts(prompts, most, limit, key, task)


def _demonstrations(job: Job, stage: SFTStage, tokenizer: Tokenizer) -> list[Sample]:
    """What an SFT stage imitates, samples of any length."""
    if stage.task is None:
        return chat_samples(stage.files(), tokenizer, job.thinking)
    family = job.family(stage.task)
    rng = Random(f"demonstrations/{job.recipe.seed}")
    samples = []
    for index in range(stage.examples):
        problem = family.problem("train", index)
        trace = family.trace(problem, rng, thorough=rng.random() < stage.thorough)
        if trace is None:
            raise RecipeError(
                f"the family {family.name} has no worked solutions to imitate; give sft a path of prompts and responses"
            )
        samples.append(demonstration(tokenizer, problem, trace if job.thinking else None))
    return samples


def fitting_samples(job: Job, stage: SFTStage, tokenizer: Tokenizer, key: str) -> tuple[list[Sample], str | None]:
    """What an SFT stage imitates and its rows hold, and a sentence where that is not all; see `fitting`."""
    place = None if stage.task is not None else lambda index: place_of_chat(stage.files(), index)
    return fitting(_demonstrations(job, stage, tokenizer), stage.seq_len, key, place)


def probe_samples(family: Family, tokenizer: Tokenizer, n: int) -> list[Sample]:
    """Questions of the probe split followed by their thorough solutions, as a base model reads them."""
    rng = Random("probe")
    samples = []
    for problem in family.problems("probe", n):
        question = [tokenizer.bos_id, *tokenizer.encode(f"{problem.prompt.strip()}\n")]
        trace = family.trace(problem, rng, thorough=True)
        if trace is None:
            raise RecipeError(f"the family {family.name} has no worked solutions, so it is no probe; name another")
        solution = tokenizer.encode(worked_answer(None, trace))
        samples.append((question + solution, [0.0] * len(question) + [1.0] * len(solution)))
    return samples
