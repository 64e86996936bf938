"""Compile the C kernels once per machine and load them.

Nothing happens on import: the first use of an operation on a CPU tensor asks for `library()`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
_FLAGS += ["-Wno-psabi"]  # vectors wider than the machine's, on older ones, never cross a file
_COMPILERS = ("cc", "gcc", "clang")
_TIMEOUT = 180  # seconds
_NO_MEMORY = ("allocate memory", "out of memory", "failed to map")  # as the compiler and the loader say it


class BuildError(Exception):
    """The kernels cannot be had; the message says what is missing."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None (with one warning) where they cannot be built or loaded."""
    outcome = _attempt()
    if isinstance(outcome, BuildError):
        warnings.warn(f"ziphius runs its slower torch path on this CPU: {outcome}", RuntimeWarning, stacklevel=2)
        return None
    return outcome


def require() -> None:
    """Raise BuildError where the kernels cannot be built or loaded."""
    outcome = _attempt()
    if isinstance(outcome, BuildError):
        raise outcome


@cache
def _attempt() -> ctypes.CDLL | BuildError:
    try:
        return load(build())
    except BuildError as error:
        return error


def build() -> Path:
    """Path of the shared library in the cache folder, compiled if it is not there yet. Raises BuildError."""
    compiler = _find_compiler()
    target = cache_folder() / f"kernels-{_fingerprint(compiler)}.so"
    if not target.exists():
        _compile(compiler, target)
    return target


def cache_folder() -> Path:
    """`$ZIPHIUS_CACHE`, else `$XDG_CACHE_HOME/ziphius`, else `~/.cache/ziphius`."""
    own, shared = os.environ.get("ZIPHIUS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "ziphius"


def load(path: Path) -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(str(path))
        for name, signature in _SIGNATURES.items():
            function = getattr(lib, name)
            function.argtypes = [_TYPES[letter] for letter in signature]
            function.restype = ctypes.c_int64
        return lib
    except (OSError, AttributeError) as error:
        raise _failure(f"{path} does not load ({error}); delete it to build it again") from error


# One letter an argument: p pointer, n int64, f float, i int. Every function returns int64, 0 unless it says otherwise.
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES = {
    "attention_forward": "ppppppppp" + "nnnnnnn" + "fii",
    "attention_backward": "ppppppppppppp" + "nnnnnnn" + "fii",
    "decoder_linear": "pp" + "nnn" + "pi",
    "decoder_scattered": "pn",
    "decoder_wanted": "pn",
    "decoder_run": "pp" + "nn" + "ppppppp" + "nii",
    "decoder_sizes": "p",
    "draw_tokens": "pppppppp" + "nn",
    "experts_gather": "ppp" + "nnn" + "i",
    "experts_layout": "pppp" + "nnn",
    "experts_sum": "ppp" + "nnn" + "ii",
    "gqa_backward": "pppppppppppp" + "nnnnnn" + "fii",
    "gqa_forward": "pppppppp" + "nnnnnn" + "fii",
    "loss_backward": "pppp" + "nn" + "fii",
    "loss_forward": "ppppp" + "nn" + "fii",
    "norm_add_backward": "ppppppppp" + "nn" + "iiii",
    "norm_add_forward": "pppppp" + "nn" + "fiiii",
    "norm_backward": "pnpppppp" + "nn" + "iiii",
    "norm_forward": "pnppp" + "nn" + "fiiii",
    "balance_backward": "ppppp" + "nnn",
    "balance_forward": "ppppp" + "nnnn",
    "router_backward": "ppppp" + "nnn" + "fi",
    "router_forward": "ppppp" + "nnnnn" + "fi",
    "swiglu_backward": "ppppppp" + "nn" + "ii",
    "swiglu_forward": "pppp" + "nn" + "ii",
}


def _sources() -> list[Path]:
    return sorted(_HERE.glob("*.c"))


def _find_compiler() -> str:
    wanted = os.environ.get("CC")
    for name in [wanted] if wanted else _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    if wanted:
        raise BuildError(f"the C compiler $CC={wanted} does not exist; unset CC or point it at one")
    raise BuildError("no C compiler (cc, gcc or clang) is on the PATH; install one, for example `apt install gcc`")


def _fingerprint(compiler: str) -> str:
    """Changes with whatever changes the machine code: sources, flags, compiler and processor."""
    digest = hashlib.sha256()
    for path in [*_sources(), *sorted(_HERE.glob("*.h"))]:
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join([*_FLAGS, *_flags_of_machine()]).encode())
    digest.update(_run([compiler, "--version"], "does not run"))
    digest.update(_processor().encode())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """What -march=native looks at: model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model", "CPU part"))}))


def _flags_of_machine() -> list[str]:
    if platform.machine() in ("x86_64", "AMD64"):
        return ["-march=native", "-mprefer-vector-width=512"]
    return ["-mcpu=native"]


def _compile(compiler: str, target: Path) -> None:
    """Written aside and renamed: several processes may build at once, and the last one wins with the same bytes."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=target.stem, suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise BuildError(f"the cache folder {target.parent} cannot be written ({error}); set ZIPHIUS_CACHE") from error
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, *_flags_of_machine(), *map(str, _sources()), "-o", name, "-lm"]
        try:
            _run([*command, "-fopenmp"], "cannot compile the kernels")
        except BuildError:  # Apple's clang has no OpenMP: the kernels then run on one thread
            _run(command, "cannot compile the kernels")
        os.chmod(name, 0o755)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _run(command: Sequence[str], complaint: str) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failure(f"{command[0]} {complaint}: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise _failure(f"{command[0]} {complaint}: {first}")
    return done.stdout


def _failure(message: str) -> Exception:
    """A BuildError; a MemoryError where it is memory that was short. A run that went on with other kernels, only since
    memory was short for a moment, would no longer give the bits that it gives."""
    return MemoryError(message) if any(sign in message for sign in _NO_MEMORY) else BuildError(message)
