"""What must be settled before anything is imported or started."""

import multiprocessing
import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # without a GPU, Triton's kernels are tested in its interpreter

ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:  # the processes that tests start import `tests.train.jobs`
    sys.path.insert(0, ROOT)
# One process loads this once, and all that tests start are its forks; whoever asked for the first of them would decide.
multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.train.jobs", "torch.utils.tensorboard"])
