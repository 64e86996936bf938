"""How each kind of stage does its work: a folder in, a folder out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ziphius.evaluate.skill import worked_solution_accuracy
from ziphius.ledger.folder import write_json
from ziphius.model.transformer import Transformer
from ziphius.reason.grpo import GRPOSource
from ziphius.reason.rollout import TaskMix
from ziphius.reason.watch import Watch
from ziphius.recipe.job import Job
from ziphius.recipe.models import load_input, write_output
from ziphius.recipe.samples import imitated, look_ahead, probe_samples
from ziphius.recipe.schema import (
    GRPOStage,
    PretrainStage,
    SFTStage,
    TokenizerStage,
)
from ziphius.recipe.texts import make_mixture, note_held_out, sample_texts
from ziphius.text.decontaminate import Decontaminated
from ziphius.text.learn import train_tokenizer
from ziphius.text.packing import PackedStream
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.lora import LoRA
from ziphius.train.losses import next_token_loss, policy_loss
from ziphius.train.settings import LossSettings, TrainSettings
from ziphius.train.sources import PretrainSource, SampleSource
from ziphius.train.start import new_model
from ziphius.train.trainer import BatchSource, LossFunction, Trainer, TrainResult

# --- tokenizer -------------------------------------------------------------------------------------------------------


def run_tokenizer(job: Job, stage: TokenizerStage, folder: Path) -> TrainResult:
    """Train the tokenizer on a sample of the corpora, drawn by weight, and write it to `folder`. Rank 0 does it."""
    job.place.on_main(lambda: _train_tokenizer(job, stage, folder))
    return TrainResult(steps=0, tokens=0, seconds=0.0, skipped=0, model_flops=0.0, gate=None)


def _train_tokenizer(job: Job, stage: TokenizerStage, folder: Path) -> None:
    counts: Counter[str] = Counter()
    tokenizer = train_tokenizer(sample_texts(job, stage, counts), stage.vocab_size)
    tokenizer.save(folder)
    write_json(folder / "data.json", dict(counts))


# --- training --------------------------------------------------------------------------------------------------------


def run_pretrain(
    job: Job, stage: PretrainStage, folder: Path, before: Path | None, tokenizer: Tokenizer, title: str
) -> TrainResult:
    """From random weights, or those of the recipe's start, to a base model."""
    look_ahead(job, tokenizer)
    if before is None:
        model = new_model(job.recipe.model.config(tokenizer.vocab_size), job.recipe.seed, job.place)
    else:
        model, _ = load_input(job, before, stage.train)
    mixture = make_mixture(job)
    stream = PackedStream(mixture, tokenizer, stage.seq_len, stage.fim_rate, job.recipe.seed)
    source = PretrainSource(stream, job.place, stage.rows, stage.micro_rows, stage.first_rows, stage.rows_warmup_steps)
    samples = [] if stage.probe is None else probe_samples(job.family(stage.probe), tokenizer, stage.probe_n)

    def probe() -> float:
        return worked_solution_accuracy(model, samples, tokenizer.pad_id, trainer.place)

    loss: LossFunction = lambda model, batch, norm: next_token_loss(model, batch, stage.loss, norm)
    trainer = _trainer(job, stage.train, model, source, loss, folder, title, probe if stage.probe else None)
    result = trainer.run()
    write_output(job, trainer, None, folder, before, tokenizer)
    filtered = {name: s for name, s in mixture.sources.items() if isinstance(s, Decontaminated)}
    dropped = {name: source.decontaminator.dropped[name] for name, source in filtered.items()}
    if job.place.is_main:
        files = [name for name, corpus in job.recipe.corpora.items() if corpus.task is None]  # lessons have no end
        counts: dict[str, Any] = {"documents": dict(stream.documents), "tokens": dict(stream.tokens)}
        counts |= {"dropped": dropped, "epochs": {name: round(stream.epochs[name], 6) for name in files}}
        for name, read in counts["epochs"].items():
            job.say(f"{title}: read {name} {read:.2g} times")
        write_json(folder / "data.json", counts)
        note_held_out(job, folder)
    return result


def run_sft(job: Job, stage: SFTStage, folder: Path, before: Path, tokenizer: Tokenizer, title: str) -> TrainResult:
    """Imitate worked answers, for as many epochs or steps as are asked for."""
    look_ahead(job, tokenizer)
    model, lora = load_input(job, before, stage.train, stage.train.lora)
    found = imitated(job, stage, tokenizer, "seq_len")
    source = SampleSource(
        found.samples, job.place, stage.seq_len, stage.rows, stage.micro_rows, tokenizer.pad_id, job.recipe.seed
    )
    settings = stage.train.within(stage.epochs * source.steps_per_epoch)
    for sentence in (*found.say, _what_binds(stage, source.steps_per_epoch, settings.steps)):
        job.say(f"{title}: {sentence}")
    weighed = _weighed(stage.loss, lora)
    loss: LossFunction = lambda model, batch, norm: next_token_loss(model, batch, weighed, norm)
    trainer = _trainer(job, settings, model, source, loss, folder, title)
    result = trainer.run()
    write_output(job, trainer, lora, folder, before, tokenizer)
    if job.place.is_main:
        data = found.counts | {
            "steps": result.steps,
            "steps_per_epoch": source.steps_per_epoch,
            "epochs": round(result.steps / source.steps_per_epoch, 3),
            "ended_by": "epochs" if settings.steps == stage.epochs * source.steps_per_epoch else "train.steps",
            "tokens": result.tokens,
        }
        write_json(folder / "data.json", data)
        if stage.path is not None:
            note_held_out(job, folder)
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
    model, lora = load_input(job, before, stage.train, stage.train.lora)
    tasks = TaskMix([(job.family(name), weight) for name, weight in sorted(stage.tasks.items())], job.recipe.seed)
    place = job.place.computing(stage.train.precision)
    source = GRPOSource(
        model, tokenizer, tasks, stage.grpo, place, seed=job.recipe.seed, thinking=job.thinking, lora=lora
    )
    watch = Watch(model.config, folder)
    trainer = _trainer(job, stage.train, model, source, _policy(stage, lora), folder, title, watch=watch)
    result = trainer.run()
    write_output(job, trainer, lora, folder, before, tokenizer)
    return result


def _policy(stage: GRPOStage, lora: LoRA | None) -> LossFunction:
    grpo, weighed = stage.grpo, _weighed(stage.loss, lora)
    return lambda model, batch, norm: policy_loss(model, batch, weighed, grpo.policy, norm, grpo.temperature)


def _weighed(loss: LossSettings, lora: LoRA | None) -> LossSettings:
    """The parts of the loss; without the prediction modules' where those are frozen."""
    return loss if lora is None else loss.model_copy(update={"mtp_weight": 0.0})


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
        place=job.place,
        title=title,
        probe=probe,
        watch=watch,
        peak_flops=job.peak_flops.get(settings.precision),
        dollars_per_hour=job.recipe.price.dollars_per_hour,
    )
