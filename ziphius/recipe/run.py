"""Running a recipe: every stage once, in order, from wherever an earlier start got to.

Run by every process of the group; rank 0 writes and speaks.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ziphius.checkpoint.commit import sweep
from ziphius.checkpoint.shards import weight_files
from ziphius.cost.ledger import LedgerRow, write_rows
from ziphius.disk.checksum import crc32_of
from ziphius.ledger.clock import Clock
from ziphius.ledger.folder import DONE, LISTED, SAMPLES, read_json, stage_key, write_json
from ziphius.ledger.model import ADAPTER
from ziphius.recipe import stages as work
from ziphius.recipe.bills import bill, devices_of, measured_energy, stage_energy
from ziphius.recipe.digests import Digests
from ziphius.recipe.evaluation import evaluate_stage
from ziphius.recipe.fitting import refuse_too_large
from ziphius.recipe.identity import stage_identity, start_identity
from ziphius.recipe.inputs import check_inputs, most_think
from ziphius.recipe.job import Job
from ziphius.recipe.lock import Lock
from ziphius.recipe.origin import START, Origin
from ziphius.recipe.plan import plan_stages
from ziphius.recipe.schema import (
    GRPOStage,
    PretrainStage,
    Recipe,
    RecipeError,
    SFTStage,
    Stage,
    TokenizerStage,
    fingerprint,
)
from ziphius.recipe.stage_folder import StageFolder, find_stage_folder, open_stage_folder
from ziphius.recipe.summary import summarise
from ziphius.recipe.texts import files_unread, reads_files
from ziphius.report import write_report
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.choose import processes_are_faster
from ziphius.train.machine import describe, measure_gemm
from ziphius.train.place import Place, join, leave
from ziphius.train.trainer import TrainResult


def run_recipe(
    recipe: Recipe, run: Path, until: str | None = None, control: bool = False, began: float | None = None
) -> dict[str, Any] | None:
    """Run all stages (up to `until`) in the folder `run`; the summary on rank 0, None elsewhere.

    Stages that are finished with the same settings are not run again, and what was made with other settings stays.
    With `control`, the fine-tuning and RL stages run a second time without thinking, from the same base, in
    `run/control`. `began`: when the start began (seconds since 1970), where a parent process worked before.

    Raises RecipeError where another process works in `run`.
    """
    place = join(recipe.machine.device)
    lock = Lock(run)
    try:
        if refusal := place.on_main(lock.take):
            raise RecipeError(refusal)
        return _run(recipe, run, until, control, began or time.time(), place)
    finally:
        lock.release()
        leave()


def _run(
    recipe: Recipe, run: Path, until: str | None, control: bool, began: float, place: Place
) -> dict[str, Any] | None:
    settled, machine = _settle_machine(recipe, run, place)
    if settled is None:
        return None
    place = settled
    peaks = {precision: measure_gemm(precision, place) * place.size for precision in ("fp32", "bf16")}
    peaks = dict(place.broadcast(peaks))  # type: ignore[call-overload]
    place.on_main(lambda: _open_run(recipe, run))
    digests = Digests(run)
    place.on_main(lambda: check_inputs(recipe, digests.inspect))
    bases = _run_part(recipe, run, until, place, peaks, began, digests)
    if control:
        _run_part(recipe, run / "control", until, place, peaks, time.time(), digests, bases)
    if not place.is_main:
        return None
    summary = summarise(recipe, run, machine | {"gemm_flops": peaks})
    write_json(run / "summary.json", summary)
    write_report(run)
    return summary


def _open_run(recipe: Recipe, run: Path) -> None:
    """Write down what this start is to do, and clear what killed ones left."""
    write_json(run / "recipe.json", recipe.model_dump(mode="json"))
    write_json(run / "plan.json", [asdict(stage) for stage in plan_stages(recipe)])
    sweep(run)


def _settle_machine(recipe: Recipe, run: Path, place: Place) -> tuple[Place | None, dict[str, Any]]:
    """Processes or threads, decided once per run folder so that a resumed run has the same shape. GPUs have one each.

    Returns no place to a process that is not needed.
    """
    path = run / "machine.json"
    machine: Any = place.on_main(lambda: read_json(path))
    moved = machine is not None and machine.get("device", "cpu") != place.device.type
    if moved and place.is_main:
        before = f"{machine.get('gpu') or machine['cpu']} with {machine['processes']} processes"
        now = f"{place.device_name} with {place.size}"
        print(f"{run.name}: begun on {before}, goes on on {now}", file=sys.stderr, flush=True)
    if machine is None or moved or place.on_gpu or recipe.machine.processes not in (0, machine["processes"]):
        chosen = _settle_processes(recipe, place)
        threads = torch.get_num_threads() * place.size // chosen
        machine = describe(place) | {"processes": chosen, "threads_per_process": threads}
        place.on_main(lambda: write_json(path, machine))
    assert isinstance(machine, dict)
    if machine["processes"] < place.size:
        leave()
        if place.rank:
            return None, machine
        place = place.alone()
    torch.set_num_threads(machine["threads_per_process"])
    return place, machine


def _settle_processes(recipe: Recipe, place: Place) -> int:
    """All that were started, or on a CPU one, where a trial of the recipe's pretraining says so."""
    stage = next((stage for stage in recipe.stages.values() if isinstance(stage, PretrainStage)), None)
    if place.size == 1 or place.on_gpu or recipe.machine.processes or stage is None:
        return place.size
    shape = recipe.model.config(1024)
    return place.size if processes_are_faster(shape, stage.train, stage.rows, stage.seq_len, place) else 1


# --- stages ----------------------------------------------------------------------------------------------------------


def _run_part(
    recipe: Recipe,
    run: Path,
    until: str | None,
    place: Place,
    peaks: dict[str, float],
    began: float,
    digests: Digests,
    bases: dict[str, StageFolder] | None = None,
) -> dict[str, StageFolder]:
    """All stages into `run`; the tokenizer and the pretraining it did, by name.

    With `bases`, those are taken from there and the rest learns without thinking.
    """
    device, devices = devices_of(place)
    about = {"device": device, "devices": devices, "dollars_per_hour": recipe.price.dollars_per_hour}
    clock = Clock(run if place.is_main else None, about, began)
    job = Job(recipe, place, thinking=bases is None, peak_flops=peaks, clock=clock, cache=run / SAMPLES)
    try:
        return _run_stages(job, run, until, digests, bases or {})
    finally:
        clock.close()


def _run_stages(
    job: Job, run: Path, until: str | None, digests: Digests, bases: dict[str, StageFolder]
) -> dict[str, StageFolder]:
    """Every stage up to `until`; later ones are taken up where they are finished, and not run."""
    inputs = job.recipe.inputs()
    origins, tokenizer = _starting_points(job, digests)
    running = True
    listed: list[str] = []
    made: dict[str, StageFolder] = {}
    for number, (name, stage) in enumerate(job.recipe.stages.items(), start=1):
        before, home = origins[inputs[name]], bases.get(name)
        if home is None:
            home = _find(job, run, number, name, stage, before.print, digests)
            if not (running or home.done):
                break
            listed.append(home.folder.name)
            job.place.on_main(lambda: write_json(run / LISTED, listed))
            _run_stage(job, name, stage, home, before, tokenizer)
        texts = (*before.texts, *([home.folder] if reads_files(job.recipe, stage) else []))
        origins[name] = Origin(home.folder, home.of.print, texts, made_here=True)
        if isinstance(stage, TokenizerStage):
            tokenizer = Tokenizer.load(home.folder)
            origins[""] = Origin(print=tokenizer.digest)
        elif running and isinstance(stage, SFTStage | GRPOStage) and job.recipe.evaluation.tasks:
            assert tokenizer is not None
            evaluate_stage(job, _title(job, name), name, home, tokenizer, digests, texts)
        if isinstance(stage, TokenizerStage | PretrainStage):
            made[name] = home
        running = running and name != until
    return made


def _starting_points(job: Job, digests: Digests) -> tuple[dict[str, Origin], Tokenizer | None]:
    """What there is before the first stage: nothing, or the folder of `model.from` with its tokenizer."""
    nothing: dict[str, Origin] = {"": Origin()}
    model = job.recipe.model
    if model.from_ is None:
        return nothing, None
    folder = model.start()
    of = job.place.on_main(lambda: start_identity(job.recipe, digests))
    tokenizer, room = Tokenizer.load(folder), model.config(0).vocab_size
    if tokenizer.vocab_size > room:
        raise RecipeError(
            f"model.from: the tokenizer of {folder} has {tokenizer.vocab_size} ids and its network {room}; copy the "
            "tokenizer's files anew from where the model came from"
        )
    tokenizer = _thinking_tokenizer(job, tokenizer)
    # Later stages decide on the template, and earlier ones train with it: it is of what they depend on.
    return nothing | {START: Origin(folder, fingerprint(of.print, tokenizer.digest))}, tokenizer


def _thinking_tokenizer(job: Job, tokenizer: Tokenizer) -> Tokenizer:
    """The folder's tokenizer; where stages teach its model to think, one whose template opens the thinking."""
    thinks = tokenizer.made_to_think()
    stages = job.recipe.stages.values()
    if thinks is tokenizer or not job.thinking or not job.place.on_main(lambda: any(map(_teaches_thinking, stages))):
        return tokenizer
    job.say("the chat template said nothing of thinking: what is trained here opens <think> in it")
    return thinks


def _teaches_thinking(stage: Stage) -> bool:
    """Whether a stage asks for thinking, or imitates chats most of which think."""
    if isinstance(stage, SFTStage):
        return stage.task is not None or most_think(stage.files())
    return isinstance(stage, GRPOStage)


def _find(job: Job, run: Path, number: int, name: str, stage: Stage, previous: str, digests: Digests) -> StageFolder:
    """Where the stage is or shall be; says what is done before, and why something is begun beside it."""

    def find() -> StageFolder:
        of = stage_identity(job.recipe, stage, previous, job.thinking, digests)
        return find_stage_folder(run, number, name, of, lambda folder: files_unread(job, stage, folder))

    home = job.place.on_main(find)
    if home.why:
        job.say(home.why)
    if home.done:
        job.say(f"{name}: done before, {read_json(home.folder / DONE)['seconds']:.0f} s")
    return home


def _run_stage(
    job: Job, name: str, stage: Stage, home: StageFolder, before: Origin, tokenizer: Tokenizer | None
) -> None:
    """One stage, unless its folder holds it finished."""
    if home.done:
        return
    folder = home.folder
    if not (job.place.on_gpu or isinstance(stage, TokenizerStage)):
        job.place.on_main(lambda: refuse_too_large(job.recipe, name, job.place.size))
    job.place.on_main(lambda: _refuse_damage(before))
    job.place.on_main(lambda: open_stage_folder(home))
    with job.clock.during(stage_key(folder)):
        began = time.perf_counter()
        job.place.forget_peak()
        with measured_energy(folder, job.place) as meter:
            result = _train(job, stage, folder, before.folder, tokenizer, _title(job, name))
        row = bill(job.place, name, stage.kind, time.perf_counter() - began + result.earlier_seconds, result.tokens)
        row.steps, row.skipped, row.gate, row.model_flops = (
            result.steps, result.skipped, result.gate, result.model_flops
        )  # fmt: skip
        row.peak_memory_gib = sum(job.place.gather(job.place.peak_memory_gib()))
        row.energy_kwh = stage_energy(folder, meter, result.earlier_seconds > 0)
        if result.model_flops and not isinstance(stage, TokenizerStage):
            row.mfu = result.model_flops / row.seconds / job.peak_flops[stage.train.precision]
        rows = row.without_data(result.batch_seconds) if isinstance(stage, PretrainStage | SFTStage) else [row]
        priced = [each.priced(job.recipe.price.dollars_per_hour) for each in rows]
        job.place.on_main(lambda: _finish(folder, row, priced))


def _finish(folder: Path, row: LedgerRow, rows: list[LedgerRow]) -> None:
    """The bills of a stage, then what says that it is done."""
    write_rows(folder / "ledger.jsonl", rows)
    written = weight_files(folder) | ({ADAPTER} if (folder / ADAPTER).exists() else set())
    weights = {name: crc32_of(folder / name) for name in sorted(written)}
    write_json(folder / DONE, asdict(row) | {"weights": weights})


def _refuse_damage(before: Origin) -> None:
    """Raise RecipeError where the weights in the folder of a stage of this run are not those that it wrote."""
    folder = before.folder
    if folder is None or not before.made_here:
        return
    for name, checksum in (read_json(folder / DONE) or {}).get("weights", {}).items():
        path = folder / name
        if not path.exists() or crc32_of(path) != checksum:
            what = "is damaged (its checksum differs)" if path.exists() else "is missing"
            raise RecipeError(
                f"{path} {what}; remove {folder / DONE}, and the same command writes it anew from the stage's state"
            )


def _title(job: Job, name: str) -> str:
    return name if job.thinking else f"{name} (without thinking)"


def _train(
    job: Job, stage: Stage, folder: Path, before: Path | None, tokenizer: Tokenizer | None, title: str
) -> TrainResult:
    if isinstance(stage, TokenizerStage):
        return work.run_tokenizer(job, stage, folder)
    assert tokenizer is not None
    if isinstance(stage, PretrainStage):
        return work.run_pretrain(job, stage, folder, before, tokenizer, title)
    assert before is not None
    if isinstance(stage, SFTStage):
        return work.run_sft(job, stage, folder, before, tokenizer, title)
    assert isinstance(stage, GRPOStage)
    return work.run_grpo(job, stage, folder, before, tokenizer, title)
