"""What is imitated and asked, as samples and prompts in tokens; whether they fit is known before any training."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from ziphius.ledger.folder import read_json, write_json
from ziphius.reason.prompts import demonstration, prompt_tokens, worked_answer
from ziphius.recipe.inputs import Where, chat_samples
from ziphius.recipe.job import Job
from ziphius.recipe.lengths import LOOKED_AT, Fitted, check_prompts
from ziphius.recipe.schema import GRPOStage, RecipeError, SFTStage, fingerprint
from ziphius.tasks.base import Family
from ziphius.text.decontaminate import Decontaminator
from ziphius.text.packing import Sample
from ziphius.text.store import SampleStore, writing
from ziphius.text.tokenizer import Tokenizer

TELL_S = 30.0  # seconds between two words on how many samples there are
_ABOUT = "about.json"
_VERSION = 1  # of how samples are made; another one makes them anew


@dataclass(frozen=True)
class Imitated:
    """The `samples` of an SFT stage, how many were `counts`ed as what, and what there is to `say` of them."""

    samples: SampleStore
    counts: dict[str, int]
    say: list[str]


def look_ahead(job: Job, tokenizer: Tokenizer) -> None:
    """Make the samples of every stage, once, and measure the prompts.

    Raises, on every rank, RecipeError for what is too long for its stage, and TaskError where a task cannot give it.
    """
    job.place.on_main(lambda: _check_lengths(job, tokenizer))


def _check_lengths(job: Job, tokenizer: Tokenizer) -> None:
    recipe = job.recipe
    limit = recipe.model.config(tokenizer.vocab_size).max_position_embeddings
    asked = recipe.evaluation
    answers = [(task, asked.split, "evaluation.max_new_tokens", asked.max_new_tokens) for task in asked.tasks]
    wanted: set[Path] = set()
    for name, stage in recipe.stages.items():
        if isinstance(stage, SFTStage):
            wanted.add(_made(job, stage, tokenizer, f"stages.{name}.seq_len"))
        elif isinstance(stage, GRPOStage):
            key, most = f"stages.{name}.grpo.max_new_tokens", stage.grpo.max_new_tokens
            answers += [(task, "train", key, most) for task in stage.tasks]
    for other in set(job.cache.glob("*")) - wanted:  # of settings that this run no longer has
        shutil.rmtree(other)
    for task, split, key, most in answers:
        problems = map(partial(job.family(task).problem, split), range(LOOKED_AT))
        prompts = (prompt_tokens(tokenizer, problem, job.thinking) for problem in problems)
        check_prompts(prompts, most, limit, key, task)


def imitated(job: Job, stage: SFTStage, tokenizer: Tokenizer, key: str) -> Imitated:
    """What an SFT stage learns from, on every rank; `key` is what its `seq_len` is called in messages."""
    folder = job.place.on_main(lambda: _made(job, stage, tokenizer, key))
    about = read_json(folder / _ABOUT)
    return Imitated(SampleStore(folder), about["counts"], about["say"])


def _made(job: Job, stage: SFTStage, tokenizer: Tokenizer, key: str) -> Path:
    """The folder with the samples of a stage, which are made unless they lie there."""
    questions = sorted(job.evaluation_texts()) if stage.path is not None else []
    stamps = [(path, (at := Path(path).stat()).st_size, at.st_mtime_ns) for path in stage.files()]
    settings = stage.model_dump(mode="json", include={"task", "examples", "thorough", "seq_len", "too_long"})
    task = job.recipe.tasks[stage.task] if stage.task else None
    of = fingerprint(_VERSION, settings, task, stamps, questions, job.recipe.seed, job.thinking, tokenizer.digest)
    folder = job.cache / of
    if not (folder / _ABOUT).exists():
        fitted = Fitted(stage.seq_len, stage.too_long, key)
        counts: Counter[str] = Counter()
        say: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        tell = time.monotonic() + TELL_S
        with writing(folder) as store:
            for sample, place in _samples(job, stage, tokenizer, questions, counts, say):
                if fitted.keep(sample, place):
                    store.add(fitted.cut(sample))
                if time.monotonic() > tell:
                    job.say(f"{key.rpartition('.')[0]}: {fitted.counts['samples']:,} samples made")
                    tell += TELL_S
        counts.update(fitted.counts)
        say += [*_left_out(counts), *fitted.say()]
        if not counts["samples"]:
            raise RecipeError(f"{key.rpartition('.')[0]}: {'; '.join([*say, fitted.refusal()])}")
        write_json(folder / _ABOUT, {"counts": counts, "say": say})
    return folder


def _samples(
    job: Job, stage: SFTStage, tokenizer: Tokenizer, questions: list[str], counts: Counter[str], say: list[str]
) -> Iterator[tuple[Sample, Where]]:
    """What a stage imitates, samples of any length, each with its place where it comes from a file."""
    if stage.task is None:
        decontaminator = Decontaminator(questions) if questions else None
        yield from chat_samples(stage.files(), tokenizer, job.thinking, decontaminator, counts, say)
        return
    family = job.family(stage.task)
    rng = Random(f"demonstrations/{job.recipe.seed}")
    for index in range(stage.examples):
        problem = family.problem("train", index)
        trace = family.trace(problem, rng, thorough=rng.random() < stage.thorough)
        if trace is None:
            raise RecipeError(
                f"the family {family.name} has no worked solutions to imitate; give sft a path of prompts and responses"
            )
        yield demonstration(tokenizer, problem, trace if job.thinking else None), str


def _left_out(counts: Counter[str]) -> list[str]:
    """A sentence where conversations were left out for what is in them."""
    reasons = {"empty": "without a question or an answer", "contaminated": "that hold a question of the evaluation"}
    found = [f"{counts[key]} {reason}" for key, reason in reasons.items() if counts[key]]
    return [f"of {counts['conversations']} conversations {' and '.join(found)} are left out"] if found else []


def probe_samples(family: Family, tokenizer: Tokenizer, n: int) -> list[Sample]:
    """Questions of the probe split followed by their thorough solutions, as a base model reads them."""
    rng = Random("probe")
    samples = []
    for problem in family.problems("probe", n):
        question = [*tokenizer.begin, *tokenizer.encode(f"{problem.prompt.strip()}\n")]
        trace = family.trace(problem, rng, thorough=True)
        if trace is None:
            raise RecipeError(f"the family {family.name} has no worked solutions, so it is no probe; name another")
        solution = tokenizer.encode(worked_answer(None, trace))
        samples.append((question + solution, [0.0] * len(question) + [1.0] * len(solution)))
    return samples
