"""What counts as a failure. Imports no torch."""


def is_fault(error: BaseException) -> bool:
    """Whether something went wrong, rather than that somebody wants an end. A panic of a library in Rust is no
    `Exception`."""
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
