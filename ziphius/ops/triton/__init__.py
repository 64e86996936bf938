"""The operations on a GPU, in Triton: fp32 and bf16 tensors, fp32 sums.

Triton itself is imported when a kernel is first asked for. With TRITON_INTERPRET=1 in the environment before that, its
interpreter runs the kernels on CPU tensors: slow, and meant for tests.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """Why the kernels cannot be had, in one line; None where they can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}); pip install triton"
    return None


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    if why_not() is not None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)
