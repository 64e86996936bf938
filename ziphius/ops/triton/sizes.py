"""What the kernels' blocks are measured by."""

from __future__ import annotations

import torch
import triton


def padded(size: int) -> int:
    """A block's side for `size` columns: a power of two, and no less than the 16 that a matrix unit takes."""
    return max(16, triton.next_power_of_2(size))


def shared_bytes(device: torch.device) -> int:
    """Shared memory of a multiprocessor; 0 without one."""
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
