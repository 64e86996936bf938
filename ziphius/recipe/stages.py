"""How each kind of stage does its work: a folder in, a folder out."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import torch

from ziphius.checkpoint.folder import load_model
from ziphius.checkpoint.folder import save_state as save_folder
from ziphius.evaluate.runner import evaluate
from ziphius.evaluate.skill import worked_solution_accuracy
from ziphius.ledger.clock import Clock
from ziphius.ledger.folder import read_json, write_json
from ziphius.model.transformer import Transformer
from ziphius.reason.grpo import GRPOSource
from ziphius.reason.prompts import demonstration, prompt_tokens, worked_answer
from ziphius.reason.rollout import TaskMix
from ziphius.reason.watch import Watch
from ziphius.recipe.inputs import chat_samples, place_of_chat
from ziphius.recipe.lengths import LOOKED_AT, check_prompts, fitting
from ziphius.recipe.schema import (
    GRPOStage,
    PretrainStage,
    Recipe,
    RecipeError,
    SFTStage,
    Stage,
    TokenizerStage,
)
from ziphius.tasks.base import Family, TaskError, normalised
from ziphius.tasks.registry import make_family
from ziphius.text.corpora import GeneratedSource, Mixture, Source, open_source
from ziphius.text.decontaminate import Decontaminated, Decontaminator
from ziphius.text.packing import PackedStream, Sample
from ziphius.text.shuffle import Shuffled
from ziphius.text.tokenizer import Tokenizer, train_tokenizer
from ziphius.train.distributed import World
from ziphius.train.losses import next_token_loss, policy_loss
from ziphius.train.settings import TrainSettings
from ziphius.train.sources import PretrainSource, SampleSource
from ziphius.train.state import find_state
from ziphius.train.trainer import BatchSource, LossFunction, Trainer, TrainResult

HELD_OUT = "held_out.json"  # short names of the questions that a pretraining stage's text was held against
LESSONS = 4000  # generated documents that a tokenizer learns from


@dataclass
class Job:
    """What every stage needs to know of the run around it."""

    recipe: Recipe
    world: World
    thinking: bool
    peak_flops: dict[str, float]
    clock: Clock

    def say(self, text: str) -> None:
        """A line for the person at the terminal, once."""
        if self.world.is_main:
            print(text, file=sys.stderr, flush=True)

    def family(self, task: str) -> Family:
        settings = self.recipe.tasks[task]
        return make_family(settings.family, **settings.settings)

    def evaluation_texts(self) -> list[str]:
        """The questions of every evaluation and probe, which no training text may hold."""
        asked = [
            (name, self.recipe.evaluation.split, self.recipe.evaluation.n) for name in self.recipe.evaluation.tasks
        ]
        for stage in self.recipe.stages.values():
            if isinstance(stage, PretrainStage) and stage.probe:
                asked.append((stage.probe, "probe", stage.probe_n))
        return [p.prompt for name, split, n in asked for p in self.family(name).problems(split, n)]


# --- tokenizer -------------------------------------------------------------------------------------------------------


def run_tokenizer(job: Job, stage: TokenizerStage, folder: Path) -> TrainResult:
    """Train the tokenizer on a sample of the corpora, drawn by weight, and write it to `folder`. Rank 0 does it."""
    job.world.on_main(lambda: _train_tokenizer(job, stage, folder))
    return TrainResult(steps=0, tokens=0, seconds=0.0, skipped=0, model_flops=0.0, gate=None)


def _train_tokenizer(job: Job, stage: TokenizerStage, folder: Path) -> None:
    counts: Counter[str] = Counter()
    tokenizer = train_tokenizer(_sample_texts(job, stage, counts), stage.vocab_size)
    tokenizer.save(folder)
    write_json(folder / "data.json", dict(counts))


def _sample_texts(job: Job, stage: TokenizerStage, counts: Counter[str]) -> Iterator[str]:
    """Documents of the corpora up to the stage's limits; `counts` has how many, and their bytes."""
    mixture = make_mixture(job, stage.sample_bytes)
    corpora = {name: corpus for name, corpus in job.recipe.corpora.items() if corpus.weight}
    files = [mixture.sources[name] for name, corpus in corpora.items() if corpus.task is None]
    lessons = len(files) < len(corpora)  # there is no end of them
    while counts["bytes"] < stage.sample_bytes:
        text = mixture.next_document()[1]
        all_read = all(source.epochs for source in files)
        if lessons and counts["documents"] >= (stage.documents or LESSONS) and (stage.documents or all_read):
            return
        if not lessons and (all_read or counts["documents"] == stage.documents):
            return
        counts["documents"] += 1
        counts["bytes"] += len(text.encode())
        yield text


def files_unread(job: Job, stage: Stage, folder: Path) -> bool:
    """Whether the files of a pretraining stage are the same up to where the work in `folder` has read them."""
    if not isinstance(stage, PretrainStage):
        return False
    try:
        state = find_state(folder / "state").state
        return state is None or make_mixture(job).unchanged(state["source"]["mixture"])
    except ValueError:  # a file is another where it was read, or there are other files
        return False


def make_mixture(job: Job, sample_bytes: int | None = None) -> Mixture:
    """The recipe's corpora, each with the evaluation questions filtered out where the recipe asks any.

    Files are held to n-grams. Lessons share the wording of the questions by design, so there whole questions count.
    With `sample_bytes`, of each corpus of files only so much is read, spread evenly; else files are shuffled.
    """
    questions = job.evaluation_texts()
    sources: dict[str, Source] = {}
    if questions:
        by_ngram, whole = Decontaminator(questions), Decontaminator(questions, n=max(map(len, questions)))
    for name, corpus in job.recipe.corpora.items():
        if corpus.task is not None:
            write = _lesson_writer(job.family(corpus.task), corpus.kinds, name)
            source: Source = GeneratedSource(write, job.recipe.seed)
        else:
            source = open_source(corpus.files(), corpus.documents, corpus.field, job.recipe.seed, sample_bytes)
            if sample_bytes is None:
                source = Shuffled(source, job.recipe.seed)
        sources[name] = Decontaminated(source, whole if corpus.task else by_ngram, name) if questions else source
    weights = {name: corpus.weight for name, corpus in job.recipe.corpora.items()}
    return Mixture(sources, weights, job.recipe.seed)


def _lesson_writer(family: Family, kinds: dict[str, float] | None, name: str) -> Callable[[Random], str]:
    def write(rng: Random) -> str:
        text = family.lesson(rng, kinds)
        if text is None:
            raise RecipeError(f"corpora.{name}.task: the family {family.name} writes no lessons; give a path instead")
        return text

    return write


# --- training --------------------------------------------------------------------------------------------------------


def run_pretrain(job: Job, stage: PretrainStage, folder: Path, tokenizer: Tokenizer, title: str) -> TrainResult:
    """From random weights to a base model."""
    look_ahead(job, tokenizer)
    model = Transformer(job.recipe.model.config(tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(job.recipe.seed))
    mixture = make_mixture(job)
    stream = PackedStream(mixture, tokenizer, stage.seq_len, stage.fim_rate, job.recipe.seed)
    source = PretrainSource(stream, job.world, stage.rows, stage.micro_rows, stage.first_rows, stage.rows_warmup_steps)
    samples = [] if stage.probe is None else _probe_samples(job.family(stage.probe), tokenizer, stage.probe_n)

    def probe() -> float:
        with trainer.autocast():
            return worked_solution_accuracy(model, samples, tokenizer.pad_id, job.world)

    loss: LossFunction = lambda model, batch, norm: next_token_loss(model, batch, stage.loss, norm)
    trainer = _trainer(job, stage.train, model, source, loss, folder, title, probe if samples else None)
    result = trainer.run()
    _write(trainer, folder, tokenizer, job)
    filtered = {name: s for name, s in mixture.sources.items() if isinstance(s, Decontaminated)}
    dropped = {name: source.decontaminator.dropped[name] for name, source in filtered.items()}
    if job.world.is_main:
        files = [name for name, corpus in job.recipe.corpora.items() if corpus.task is None]  # lessons have no end
        counts: dict[str, Any] = {"documents": dict(stream.documents), "tokens": dict(stream.tokens)}
        counts |= {"dropped": dropped, "epochs": {name: round(stream.epochs[name], 6) for name in files}}
        for name, read in counts["epochs"].items():
            job.say(f"{title}: read {name} {read:.2g} times")
        write_json(folder / "data.json", counts)
        write_json(folder / HELD_OUT, sorted(map(_short, job.evaluation_texts())))
    return result


def run_sft(job: Job, stage: SFTStage, folder: Path, before: Path, tokenizer: Tokenizer, title: str) -> TrainResult:
    """Imitate worked answers, for as many epochs or steps as are asked for."""
    look_ahead(job, tokenizer)
    model = load_model(before)
    samples, left_out = fitting_samples(job, stage, tokenizer, "seq_len")
    source = SampleSource(
        samples, job.world, stage.seq_len, stage.rows, stage.micro_rows, tokenizer.pad_id, job.recipe.seed
    )
    settings = stage.train.within(stage.epochs * source.steps_per_epoch)
    for sentence in (left_out, _what_binds(stage, source.steps_per_epoch, settings.steps)):
        if sentence:
            job.say(f"{title}: {sentence}")
    loss: LossFunction = lambda model, batch, norm: next_token_loss(model, batch, stage.loss, norm)
    trainer = _trainer(job, settings, model, source, loss, folder, title)
    result = trainer.run()
    _write(trainer, folder, tokenizer, job)
    if job.world.is_main:
        data = {
            "samples": len(samples),
            "steps": result.steps,
            "steps_per_epoch": source.steps_per_epoch,
            "epochs": round(result.steps / source.steps_per_epoch, 3),
            "ended_by": "epochs" if settings.steps == stage.epochs * source.steps_per_epoch else "train.steps",
            "tokens": result.tokens,
        }
        write_json(folder / "data.json", data)
    return result


def _what_binds(stage: SFTStage, steps_per_epoch: int, steps: int) -> str:
    """Whether the epochs or the steps asked for end the stage, and when."""
    whole = f"{stage.epochs} epoch{'s' * (stage.epochs > 1)} of {steps_per_epoch} steps"
    asked = stage.train.steps
    if asked is None or asked == stage.epochs * steps_per_epoch:
        return f"{whole}: {steps} in all"
    if asked > steps:
        return f"{asked} steps asked for; {whole} end it after {steps}"
    return f"{whole} asked for; {asked} steps end it after {asked / steps_per_epoch:.1f} epochs"


def run_grpo(job: Job, stage: GRPOStage, folder: Path, before: Path, tokenizer: Tokenizer, title: str) -> TrainResult:
    """Learn from rewards alone."""
    look_ahead(job, tokenizer)
    model = load_model(before)
    tasks = TaskMix([(job.family(name), weight) for name, weight in stage.tasks.items()], job.recipe.seed)
    bf16 = stage.train.precision == "bf16"
    source = GRPOSource(
        model, tokenizer, tasks, stage.grpo, job.world, seed=job.recipe.seed, thinking=job.thinking, bf16=bf16
    )
    watch = Watch(model.config, folder)
    trainer = _trainer(job, stage.train, model, source, _policy(stage), folder, title, watch=watch)
    result = trainer.run()
    _write(trainer, folder, tokenizer, job)
    return result


def _policy(stage: GRPOStage) -> LossFunction:
    policy = stage.grpo.policy.model_copy(update={"temperature": stage.grpo.temperature})
    return lambda model, batch, norm: policy_loss(model, batch, stage.loss, policy, norm)


def _trainer(
    job: Job,
    settings: TrainSettings,
    model: Transformer,
    source: BatchSource,
    loss: LossFunction,
    folder: Path,
    title: str,
    probe: Callable[[], float] | None = None,
    watch: Watch | None = None,
) -> Trainer:
    return Trainer(
        model,
        source,
        loss,
        settings,
        folder,
        world=job.world,
        title=title,
        probe=probe,
        watch=watch,
        peak_flops=job.peak_flops.get(settings.precision),
        dollars_per_hour=job.recipe.price.dollars_per_hour,
    )


def _write(trainer: Trainer, folder: Path, tokenizer: Tokenizer, job: Job) -> None:
    """The stage's model as a folder that others open, in fp32 from the master weights."""
    if job.world.is_main:
        state = dict(trainer.model.state_dict()) | trainer.flat.full_state()
        if trainer.model.config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        save_folder(trainer.model.config, state, folder)
        tokenizer.save(folder)
    job.world.barrier()


# --- lengths ---------------------------------------------------------------------------------------------------------


def look_ahead(job: Job, tokenizer: Tokenizer) -> None:
    """Raise RecipeError, on every rank, for samples and prompts of any stage that are too long for it."""
    complaint = ""
    if job.world.is_main:
        try:
            _check_lengths(job, tokenizer)
        except (RecipeError, TaskError) as error:
            complaint = str(error)
    if complaint := str(job.world.broadcast(complaint)):
        raise RecipeError(complaint)


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


# --- samples ---------------------------------------------------------------------------------------------------------


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


def _probe_samples(family: Family, tokenizer: Tokenizer, n: int) -> list[Sample]:
    """Questions of the probe split followed by their thorough solutions, as a base model reads them."""
    rng = Random("probe")
    samples = []
    for problem in family.problems("probe", n):
        question = [tokenizer.bos_id, *tokenizer.encode(f"{problem.prompt.strip()}\n")]
        trace = family.trace(problem, rng, thorough=True)
        if trace is None:
            warnings.warn(f"the family {family.name} has no worked solutions, so it cannot gate a stage", stacklevel=2)
            return []
        solution = tokenizer.encode(worked_answer(None, trace))
        samples.append((question + solution, [0.0] * len(question) + [1.0] * len(solution)))
    return samples


# --- evaluation ------------------------------------------------------------------------------------------------------


def not_held_out(job: Job, base: Path) -> int:
    """How many questions of the evaluation are other ones than those that `base`, pretrained on files, was kept from.

    Lessons never hold them: they are made from problems of another split.
    """
    known = read_json(base / HELD_OUT)
    asked = job.recipe.evaluation
    if known is None or not any(corpus.weight and corpus.path for corpus in job.recipe.corpora.values()):
        return 0
    problems = [p for task in asked.tasks for p in job.family(task).problems(asked.split, asked.n)]
    return sum(_short(problem.prompt) not in set(known) for problem in problems)


def _short(question: str) -> str:
    return blake2b(normalised(question).encode(), digest_size=8).hexdigest()


def run_evaluation(job: Job, folder: Path, after: str, tokenizer: Tokenizer) -> list[dict]:
    """Ask the model in `folder` the recipe's evaluation problems."""
    model = load_model(folder)
    asked = job.recipe.evaluation
    settings = asked.model_copy(update={"show": asked.n})  # how many are shown is the report's to say, and may change
    results = []
    for task in settings.tasks:
        found = evaluate(
            model, tokenizer, job.family(task), settings, thinking=job.thinking, seed=job.recipe.seed, world=job.world
        )
        results.append({"after": after, "task": task, **found.as_dict()})
    return results
