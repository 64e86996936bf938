"""Functions of the C library that Python has no name for, with their failures as OSError."""

import ctypes
import os
from typing import Any


def call(name: str, *arguments: Any) -> int:
    """The C library's function `name`; integers are passed as long. Raises OSError where it fails or is missing."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except AttributeError:
        raise OSError(f"no {name} in the C library") from None
    function.restype = ctypes.c_long
    result = function(*(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
