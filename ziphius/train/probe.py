"""How fast this machine trains on its processors: measured, for a plan that rests on it.

Imports torch only in the processes that measure: one a core with one thread each, at the same time, as `ziphius run`
shares a run. (Threads of one process that wait for one another fall far behind on a machine that others use too.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median

from ziphius.cost.flops import train_flops_per_token
from ziphius.model.config import ModelConfig
from ziphius.model.families import config_from_hf
from ziphius.train.settings import TrainSettings

_TOKENS = 1024  # a process's tokens a step: enough that calls do not dominate, few enough that a step ends


def measure_training(config: ModelConfig, seq_len: int, seconds: float) -> float:
    """Model FLOPs a second (with multi-token prediction) of training steps in BF16, all processes together.

    Each takes about `seconds` after its start; at least three steps are made, two of them to warm up. Raises
    RuntimeError with the last line of a process that failed.
    """
    count = min(os.cpu_count() or 1, 8)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    order = json.dumps({"config": config.to_hf(), "seq_len": seq_len, "seconds": seconds})
    command = [sys.executable, "-m", "ziphius.train.probe", order]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]
    total = 0.0
    for process in processes:
        out, said = process.communicate()
        if process.returncode:
            reason = (said.strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"the probe of this machine's speed failed: {reason}")
        total += float(out)
    return total


def measure_alone(config: ModelConfig, seq_len: int, seconds: float) -> float:
    """The same in this process alone."""
    from ziphius.train.place import Place
    from ziphius.train.trial import step_seconds, trial

    length = min(seq_len, _TOKENS)
    rows = max(1, _TOKENS // length)
    with trial(config, TrainSettings(steps=1), rows, length, Place()) as trainer:
        times = step_seconds(trainer, count=1000, limit=seconds)
    return rows * length * train_flops_per_token(config, length, mtp=True) / median(times)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(measure_alone(config_from_hf(asked["config"]), asked["seq_len"], asked["seconds"]))
