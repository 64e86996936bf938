"""Running a recipe: every stage once, in order, from wherever an earlier start got to.

Run by every process of the group; rank 0 writes and speaks.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ziphius.checkpoint.folder import load_config
from ziphius.cost.energy import EnergyMeter
from ziphius.cost.flops import count_parameters
from ziphius.cost.ledger import LedgerRow, append_row, read_abandoned, read_rows
from ziphius.reason.chart import reading
from ziphius.recipe import stages as work
from ziphius.recipe.bills import bill, book_abandoned, lost_seconds, measured_energy, stage_energy
from ziphius.recipe.inputs import check_inputs
from ziphius.recipe.plan import plan_stages
from ziphius.recipe.schema import GRPOStage, PretrainStage, Recipe, SFTStage, TokenizerStage, fingerprint
from ziphius.recipe.screen import one_line
from ziphius.report import write_report
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.choose import processes_are_faster
from ziphius.train.distributed import World, join_world, leave_world
from ziphius.train.machine import describe, measure_gemm, peak_memory_gib
from ziphius.train.metrics import read_metrics
from ziphius.train.state import write_atomically
from ziphius.train.trainer import Interrupted, TrainResult

_DONE = "stage.json"


def run_recipe(recipe: Recipe, run: Path, until: str | None = None, control: bool = False) -> dict[str, Any] | None:
    """Run all stages (up to `until`) in the folder `run`; the summary on rank 0, None elsewhere.

    Stages that are finished with the same settings are not run again. With `control`, the fine-tuning and RL stages
    run a second time without thinking, from the same base, in `run/control`.
    """
    world = join_world()
    try:
        settled, machine = _settle_machine(recipe, run, world)
        if settled is None:
            return None
        world = settled
        peaks = {"fp32": measure_gemm("fp32") * world.size, "bf16": measure_gemm("bf16") * world.size}
        peaks = dict(world.broadcast(peaks))  # type: ignore[call-overload]
        if world.is_main:
            _write_json(run / "recipe.json", recipe.model_dump(mode="json"))
            _write_json(run / "plan.json", [asdict(stage) for stage in plan_stages(recipe)])
        world.on_main(lambda: check_inputs(recipe))
        job = work.Job(recipe, world, thinking=True, peak_flops=peaks)
        _run_stages(job, run, until)
        if control:
            _run_stages(work.Job(recipe, world, thinking=False, peak_flops=peaks), run / "control", until, base=run)
        if not world.is_main:
            return None
        summary = summarise(recipe, run, machine | {"gemm_flops": peaks})
        _write_json(run / "summary.json", summary)
        write_report(run)
        return summary
    finally:
        leave_world()


def _settle_machine(recipe: Recipe, run: Path, world: World) -> tuple[World | None, dict[str, Any]]:
    """Processes or threads, decided once per run folder so that a resumed run has the same shape.

    Returns no world to a process that is not needed.
    """
    path = run / "machine.json"
    machine: Any = world.broadcast(_read_json(path) if world.is_main else None)
    if machine is None or recipe.machine.processes not in (0, machine["processes"]):
        chosen = world.size
        if world.size > 1 and recipe.machine.processes == 0:
            stage = next((s for s in recipe.stages.values() if isinstance(s, PretrainStage)), None)
            if stage is not None:
                shape = recipe.model.config(1024)
                together = processes_are_faster(shape, stage.train, stage.rows, stage.seq_len, world)
                chosen = world.size if together else 1
        threads = torch.get_num_threads() * world.size // chosen
        machine = describe() | {"processes": chosen, "threads_per_process": threads}
        if world.is_main:
            _write_json(path, machine)
    assert isinstance(machine, dict)
    if machine["processes"] < world.size:
        rank = world.rank
        leave_world()
        if rank:
            return None, machine
        world = World()
    torch.set_num_threads(machine["threads_per_process"])
    return world, machine


# --- stages ----------------------------------------------------------------------------------------------------------


def _run_stages(job: work.Job, run: Path, until: str | None, base: Path | None = None) -> None:
    """All stages into `run`; with `base`, tokenizer and pretraining are taken from there."""
    _set_aside(job, run)
    previous = ""
    tokenizer: Tokenizer | None = None
    before = Path()
    for number, (name, stage) in enumerate(job.recipe.stages.items(), start=1):
        borrowed = base is not None and isinstance(stage, TokenizerStage | PretrainStage)
        folder = (base if borrowed and base else run) / "stages" / f"{number:02d}-{name}"
        recipe = job.recipe
        asked: Any = recipe.evaluation
        if isinstance(
            stage, TokenizerStage | PretrainStage
        ):  # its questions alone matter: they are kept out of the text
            asked = [asked.tasks, asked.split, asked.n]
        inputs = _files(recipe, stage)
        previous = fingerprint(
            stage, recipe.model, recipe.seed, recipe.tasks, recipe.corpora, asked, inputs, job.thinking, previous
        )
        if not borrowed:
            _run_stage(job, name, stage, folder, before, tokenizer, previous)
        if isinstance(stage, TokenizerStage):
            tokenizer = Tokenizer.load(folder)
        before = folder
        if name == until:
            break


def _files(recipe: Recipe, stage: Any) -> list[tuple[str, int, int]]:
    """The files that a stage reads, with size and time of change: when one is replaced the stage runs again."""
    paths = [path for corpus in recipe.corpora.values() for path in corpus.files()]
    if isinstance(stage, SFTStage):
        paths += stage.files()
    return [(path, (about := os.stat(path)).st_size, about.st_mtime_ns) for path in paths]


def _set_aside(job: work.Job, run: Path) -> None:
    """Move stages that the recipe no longer has, or has in another place, out of the way and out of the summary."""
    names = {f"{number:02d}-{name}" for number, name in enumerate(job.recipe.stages, start=1)}
    if job.world.is_main and (run / "stages").exists():
        for folder in sorted((run / "stages").iterdir()):
            if folder.name not in names:
                shutil.rmtree(run / "replaced" / folder.name, ignore_errors=True)
                (run / "replaced").mkdir(exist_ok=True)
                book_abandoned(run, folder, job.recipe.price.dollars_per_hour, job.world)
                folder.rename(run / "replaced" / folder.name)
    job.world.barrier()


def _run_stage(
    job: work.Job, name: str, stage: Any, folder: Path, before: Path, tokenizer: Tokenizer | None, print_: str
) -> None:
    """One stage and its evaluation, unless its folder already holds them with the same settings."""
    done = _read_json(folder / _DONE)
    if done and done["fingerprint"] == print_:
        _say(job, f"{name}: done before, {done['seconds']:.0f} s")
        return
    _begin_folder(job, folder, print_)
    title = name if job.thinking else f"{name} (without thinking)"
    began = time.perf_counter()
    lost = bill(job.world, f"lost in {name}", "lost", lost_seconds(folder) if job.world.is_main else 0.0)
    with measured_energy(folder, job.world) as meter:
        result = _train(job, stage, folder, before, tokenizer, title)
    row = bill(job.world, name, stage.kind, time.perf_counter() - began + result.earlier_seconds, result.tokens)
    row.steps, row.skipped, row.gate, row.model_flops = result.steps, result.skipped, result.gate, result.model_flops
    row.peak_memory_gib = sum(job.world.gather(peak_memory_gib()))
    row.energy_kwh = stage_energy(folder, meter, result.earlier_seconds > 0)
    if result.model_flops:
        row.mfu = result.model_flops / row.seconds / job.peak_flops[stage.train.precision]
    rows = row.without_data(result.batch_seconds) if isinstance(stage, PretrainStage | SFTStage) else [row]
    if isinstance(stage, SFTStage | GRPOStage) and job.recipe.evaluation.tasks:
        assert tokenizer is not None
        rows.append(_evaluate(job, folder, name, title, tokenizer))
    if job.world.is_main:
        for each in rows + ([lost] if lost.seconds else []):
            append_row(folder / "ledger.jsonl", each.priced(job.recipe.price.dollars_per_hour))
        _write_json(folder / _DONE, asdict(row) | {"fingerprint": print_})
    job.world.barrier()


def _evaluate(job: work.Job, folder: Path, name: str, title: str, tokenizer: Tokenizer) -> LedgerRow:
    """Ask the recipe's problems, write what was found and return the bill."""
    began = time.perf_counter()
    _say(job, f"{title}: asking {job.recipe.evaluation.n} held-out problems")
    with EnergyMeter(None if job.world.is_main else []) as meter:
        found = work.run_evaluation(job, folder, name, tokenizer)
    row = bill(job.world, f"evaluate {name}", "evaluation", time.perf_counter() - began)
    row.energy_kwh = meter.kwh
    if job.world.is_main:
        _write_json(folder / "evaluation.json", found)
    for entry in found:
        _say(job, f"{title}: {entry['task']} pass@1 {entry['pass_at_1']:.1%}, greedy {entry['greedy']:.1%}")
    return row


def _train(
    job: work.Job, stage: Any, folder: Path, before: Path, tokenizer: Tokenizer | None, title: str
) -> TrainResult:
    if isinstance(stage, TokenizerStage):
        return work.run_tokenizer(job, stage, folder)
    assert tokenizer is not None
    if isinstance(stage, PretrainStage):
        return work.run_pretrain(job, stage, folder, tokenizer, title)
    if isinstance(stage, SFTStage):
        return work.run_sft(job, stage, folder, before, tokenizer, title)
    assert isinstance(stage, GRPOStage)
    return work.run_grpo(job, stage, folder, before, tokenizer, title)


def _begin_folder(job: work.Job, folder: Path, print_: str) -> None:
    """Keep what an unfinished start with the same settings left; remove what other settings left."""
    if job.world.is_main:
        marker, rate = folder / "fingerprint.txt", job.recipe.price.dollars_per_hour
        if folder.exists() and (not marker.exists() or marker.read_text() != print_):
            for stale in sorted(folder.parent.iterdir()):  # what was built on it goes with it
                if stale.name >= folder.name:
                    book_abandoned(folder.parents[1], stale, rate, job.world)
                    shutil.rmtree(stale)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(marker, lambda file: file.write(print_.encode()))
        (folder / "ledger.jsonl").unlink(missing_ok=True)
    job.world.barrier()


# --- what is left behind ---------------------------------------------------------------------------------------------


def summarise(recipe: Recipe, run: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The contents of `summary.json` from what the stages wrote."""
    last = sorted((run / "stages").iterdir())[-1]
    summary: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    if (last / "config.json").exists():
        counts = count_parameters(load_config(last))
        summary["parameters"] = {"total": counts.total + counts.mtp_total, "active": counts.active}
    thinking = _summarise_stages(run)
    summary |= thinking
    summary["total_seconds"] = sum(stage["seconds"] for stage in thinking["stages"])
    summary["control"] = _summarise_stages(run / "control") if (run / "control").exists() else None
    rl = [row for folder in _stage_folders(run, "grpo") for row in read_metrics(folder)]
    trained = [
        row for kind in ("pretrain", "sft", "grpo") for f in _stage_folders(run, kind) for row in read_metrics(f)
    ]
    if rl:
        seen = [value for row in rl if (value := reading(row, "mismatch")) is not None]
        summary["mismatch"] = sum(seen) / max(len(seen), 1)
    if trained:
        summary["load_violation"] = trained[-1]["load_violation"]
    summary["price"] = recipe.price.model_dump()
    summary["machine"] = machine
    return summary


def _summarise_stages(run: Path) -> dict[str, Any]:
    rows, abandoned = read_rows(run), read_abandoned(run)
    keys = ("name", "kind", "seconds", "tokens", "device_hours", "dollars", "steps", "mfu", "gate", "energy_kwh")
    evaluations = []
    for path in sorted((run / "stages").glob("*/evaluation.json")):
        for entry in json.loads(path.read_text()):
            evaluations.append({key: value for key, value in entry.items() if key != "examples"})
    bills = {"stages": rows} | ({"abandoned": abandoned} if abandoned else {})
    shown = {name: [{key: getattr(row, key) for key in keys} for row in part] for name, part in bills.items()}
    return shown | {"evaluations": evaluations}


def _stage_folders(run: Path, kind: str) -> list[Path]:
    found = []
    for path in sorted((run / "stages").glob(f"*/{_DONE}")):
        if json.loads(path.read_text())["kind"] == kind:
            found.append(path.parent)
    return found


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1).encode()))


def _say(job: work.Job, text: str) -> None:
    if job.world.is_main:
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry of each process that `ziphius run` starts: the checked recipe comes by file."""
    _die_with_parent()
    order = json.loads(Path(os.environ["ZIPHIUS_RUN"]).read_text())
    is_main = os.environ.get("RANK", "0") == "0"
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        run_recipe(Recipe(**order["recipe"]), Path(order["run"]), order["until"], order["control"])
    except Interrupted as error:
        if is_main:
            print(f"ziphius: {error}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if order["debug"]:
            raise
        if is_main or not isinstance(error, (ValueError, OSError)):  # a mistake meets all ranks; one says so
            print(f"ziphius: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _interrupt(*_: object) -> None:
    """Asked to stop outside the training loop, which listens by itself."""
    raise Interrupted("stopped between the steps of a stage")


def _die_with_parent() -> None:
    """Without its supervisor a process would go on for ever, beside the next start of the same run."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
