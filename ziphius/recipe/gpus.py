"""How many GPUs a run can use, asked without loading torch into this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, Windows' under WSL, AMD's
_ASK = "import torch; print(torch.cuda.device_count())"
_PATIENCE = 120.0  # seconds: drivers that wake up take their time


def count_gpus() -> int:
    """How many torch finds here: 0 in a blink where there is no driver, else asked of a child in about two seconds.

    A driver alone does not say: torch may be a build for processors, and `CUDA_VISIBLE_DEVICES` may hide some.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return 0
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_PATIENCE)
    return int(asked.stdout) if asked.returncode == 0 else 0
