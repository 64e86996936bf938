"""A run folder as `ziphius run` leaves it, with made-up but plausible numbers."""

import json
import math
from random import Random

PROMPT = "How many legs are there in total if you have {} cows and {} ants?"
MACHINE = {
    "cpu": "AMD EPYC 9B45",
    "cores": 2,
    "memory_gib": 23.5,
    "gpu": None,
    "torch": "2.13.0+cpu",
    "processes": 2,
    "threads_per_process": 1,
    "gemm_flops": {"fp32": 1.5e11, "bf16": 6.2e11},
}
RECIPE = {
    "name": "r1-cpu",
    "seed": 7,
    "model": {"depth": 4, "preset": None},
    "stages": {"rl": {"kind": "grpo", "grpo": {"group_size": 8, "policy": {"clip_high": 0.28}}}},
    "price": {"dollars_per_hour": 0.0425, "what": "half of a spot machine"},
}


def write_fake_run(folder, *, rl=True, control=True, rl_rows=None, response=None):
    """`rl_rows` replaces the rows of the RL stage, `response` the text of every answer."""
    stages = [("tokenizer", "tokenizer", 0, 4.1), ("pretrain", "pretrain", 900, 106.2), ("sft", "sft", 110, 14.4)]
    if rl:
        stages.append(("rl", "grpo", 60, 41.3))
    write(folder / "recipe.json", RECIPE)
    thinking = _write_stages(folder, stages, rl_rows, response, 1.0)
    summary = {"name": "r1-cpu", "seed": 7, "parameters": {"total": 1_418_240, "active": 912_384}} | thinking
    summary["total_seconds"] = sum(stage["seconds"] for stage in thinking["stages"])
    summary |= {"control": None, "mismatch": 0.0081, "load_violation": 0.62, "machine": MACHINE}
    summary["price"] = RECIPE["price"]
    if control:
        summary["control"] = _write_stages(folder / "control", stages[2:], None, response, 0.12)
    write(folder / "summary.json", summary)
    return summary


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_stages(run, stages, rl_rows, response, skill):
    rng = Random(0)
    ledger, evaluations = [], []
    for number, (name, kind, steps, seconds) in enumerate(stages, start=1):
        folder = run / "stages" / f"{number:02d}-{name}"
        rows = [_row(kind, step, steps, skill, rng) for step in range(steps)]
        if kind == "grpo" and rl_rows is not None:
            rows = rl_rows
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        bill = {"name": name, "kind": kind, "seconds": seconds, "tokens": steps * 1024, "steps": steps, "skipped": 0}
        bill |= {"device_hours": seconds / 3600, "dollars": seconds / 3600 * 0.0425, "energy_kwh": None, "gate": None}
        bill["mfu"] = 0.213 if steps else None
        write(folder / "stage.json", bill)
        ledger.append(bill)
        if kind in ("sft", "grpo"):
            entry = _evaluation(name, {"sft": 0.43, "grpo": 0.972}[kind] * skill, kind, response, skill == 1.0)
            write(folder / "evaluation.json", {"results": [entry]})
            evaluations.append({key: value for key, value in entry.items() if key != "examples"})
            bill = bill | {"name": f"evaluate {name}", "kind": "evaluation", "seconds": 6.0, "tokens": 0, "mfu": None}
            ledger.append(bill | {"device_hours": 6 / 3600, "dollars": 6 / 3600 * 0.0425})
    return {"stages": ledger, "evaluations": evaluations}


def _row(kind, step, steps, skill, rng):
    x = step / max(steps - 1, 1)
    row = {
        "step": step + 1,
        "tokens": 1024 * (step + 1),
        "seconds": {"pretrain": 0.11, "sft": 0.13}.get(kind, 0.68) * (step + 1),
        "lr": 2e-3,
        "grad_norm": 0.5 + rng.gauss(0, 0.05),
        "skipped": 0,
        "tokens_per_second": {"pretrain": 11_000, "sft": 10_500}.get(kind, 2_400) * (1 + rng.gauss(0, 0.03)),
        "load_violation": 0.5 + math.exp(-8 * x) * (kind == "pretrain") + rng.gauss(0, 0.05),
        "mfu": {"pretrain": 0.24, "sft": 0.22}.get(kind, 0.05) * (1 + rng.gauss(0, 0.03)),
    }
    if kind != "grpo":
        start = {"pretrain": 6.9, "sft": 1.4}[kind]
        row["loss"] = 0.35 + (start - 0.35) * math.exp(-6 * x) + rng.gauss(0, 0.05)
        row["mtp_loss"] = row["loss"] * 1.3
        if kind == "pretrain" and (step + 1) % 50 == 0:
            row["probe"] = 1 / (1 + math.exp(-12 * (x - 0.5)))
        return row
    accuracy = skill * (0.43 + 0.54 * (1 - math.exp(-4 * x))) + rng.gauss(0, 0.02)
    return row | {
        "loss": rng.gauss(0, 0.01),
        "mtp_loss": 0.4,
        "entropy": 0.3 * math.exp(-1.5 * x) + rng.gauss(0, 0.005),
        "clipped": 0.0,
        "mismatch": 0.008 + rng.gauss(0, 0.001),
        "reward": accuracy + 0.97,
        "reward_accuracy": accuracy,
        "reward_format": 0.97,
        "reward_language": 1.0,
        "reward_std": 0.3,
        "groups_mixed": 0.8 - 0.5 * x,
        "response_length": (43 + 4 * x) * (1 if skill == 1.0 else 0.1),
        "response_length_max": 60.0,
        "truncated": 0.01,
        "undecided": 0.0,
        "rollout_seconds": 0.4,
        "rollout_tokens": 11_000,
    }


def _evaluation(after, pass_1, kind, response, thinking):
    examples = []
    for number in range(6):
        cows, ants = number + 2, 2 * number + 1
        right = 4 * cows + 6 * ants
        correct = kind == "grpo" or number % 3 == 0
        said = right if correct else right + 2
        trace = (
            f"{cows} cows +{4 * cows} ={4 * cows}\n{ants} ants +{6 * ants} ={said}\n</think>\n\n" if thinking else ""
        )
        text = response if response is not None else f"{trace}{said}"
        example = {"prompt": PROMPT.format(cows, ants), "answer": str(right), "response": text, "correct": correct}
        examples.append(example)
    greedy = min(1.0, pass_1 * 1.03)
    return {
        "after": after,
        "task": "legs",
        "family": "leg_counting",
        "split": "test",
        "n": 512,
        "samples": 4,
        "pass_at_1": pass_1,
        "pass_at_1_bounds": [pass_1, pass_1],
        "ci95": [pass_1 - 0.015, min(1.0, pass_1 + 0.015)],
        "greedy": greedy,
        "greedy_bounds": [greedy, greedy],
        "greedy_ci95": [greedy - 0.02, min(1.0, greedy + 0.02)],
        "pass_at_k": {"2": min(1.0, pass_1 * 1.01), "4": min(1.0, pass_1 * 1.02)},
        "majority_at_k": pass_1,
        "format": 0.98,
        "response_length": 45.2,
        "undecided": 0,
        "greedy_undecided": 0,
        "examples": examples,
    }
