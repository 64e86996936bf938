"""A checker of one's own: questions from a file, judged by a function in a Python file."""

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ziphius.tasks.base import Problem, TaskError, Verdict
from ziphius.tasks.questions import QuestionFamily
from ziphius.tasks.verifier import LIMIT_S, Judge, judge_apart, limit_of, words

SHAPE = "def judge(answer: str, gold: str) -> float, or with the line's whole object as a third argument"


@dataclass(frozen=True)
class FileVerifier:
    """A function of a Python file; see `Verifier`. It may import and read what lies beside the file.

    The function is called with the answer, the gold and, where it takes three arguments, the dict of the question's
    line. It returns a score in [0, 1] or a bool; None and every exception leave the answer undecided.
    """

    path: Path
    source: bytes  # as it was when it was checked, so that this is what runs
    function: str
    takes_row: bool
    limit_s: float

    @classmethod
    def of(cls, path: Path, function: str, limit_s: float = LIMIT_S) -> "FileVerifier":
        """Reads the file, without running it. Raises TaskError where the function is missing or takes other
        arguments."""
        path = path.absolute()
        try:
            source = path.read_bytes()
            tree = ast.parse(source)
        except OSError as error:
            raise TaskError(f"tasks: family own cannot read the verifier's file {path}: {error.strerror}") from error
        except (SyntaxError, ValueError, RecursionError) as error:
            raise TaskError(f"tasks: family own: {path} is not Python: {error}") from error
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        if not found:
            raise TaskError(f"tasks: family own: {path} defines no function {function}; write {SHAPE}")
        least, most = _arguments(found[-1])
        if least > 3 or most < 2:
            raise TaskError(
                f"tasks: family own: {function} in {path}:{found[-1].lineno} takes other arguments; write {SHAPE}"
            )
        return cls(path, source, function, most >= 3, limit_s)

    @property
    def reads(self) -> tuple[Path, ...]:
        return (self.path.parent,)

    def load(self) -> Judge:
        """Runs the file: for a worker only."""
        module = ModuleType(self.path.stem)
        module.__file__ = str(self.path)
        sys.modules.setdefault(module.__name__, module)  # dataclasses look there
        sys.path.append(str(self.path.parent))
        exec(compile(self.source, self.path, "exec"), vars(module))
        return partial(self._judge, getattr(module, self.function))

    def _judge(self, judge: Callable[..., Any], problem: Problem, answer: str) -> tuple[float | None, str]:
        score = judge(answer, problem.answer, *([problem.metadata] if self.takes_row else []))
        return (None, "the checker gave no score") if score is None else (float(score), words(float(score)))


class OwnFamily(QuestionFamily):
    """Questions from a file (see `QuestionFamily`), judged by a function of the user's in worker processes.

    settings: those of `QuestionFamily`; `verifier`, as "checks.py:judge": a Python file, relative to where the command
    is started, and a function defined in it (see `FileVerifier`); `limit_s` of processor time for one check (default
    5). The file is never run in this process.
    """

    name = "own"

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings, "verifier", "limit_s")
        path, _, function = str(settings.get("verifier", "")).rpartition(":")
        if not (path and function):
            raise TaskError(f'tasks: family own needs the setting verifier, as "checks.py:judge": {SHAPE}')
        self._verifier = FileVerifier.of(Path(path), function, limit_of(self.name, settings))

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return self.verify_all([(problem, answer)])[0]

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return judge_apart(self._verifier, pairs)


def _arguments(function: ast.FunctionDef) -> tuple[int, int]:
    """How many arguments it needs, and how many it takes, in order."""
    given = function.args
    most = len(given.posonlyargs) + len(given.args)
    by_name = sum(default is None for default in given.kw_defaults)
    return most - len(given.defaults) + (4 if by_name else 0), max(most, 3 if given.vararg else 0)
