"""Answers in free mathematical notation: a family of questions from a file, and the process that checks its answers.

Computer algebra can run without end on a strange answer. So checks run in one long-lived worker process that is killed
when a check passes its limit, and such a check is undecided, never wrong.
"""

import atexit
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import IO, Any, cast

from ziphius.tasks.answers import extract_answer
from ziphius.tasks.base import SPLIT_PERCENT, Family, Problem, TaskError, Verdict, check_split, normalised, split_of
from ziphius.tasks.math_check import at_once, fault

WORKER = Path(__file__).with_name("math_worker.py")
START_LIMIT_S = 120.0  # loading sympy takes a second, and far longer on a machine that is busy


def verify_math(answer: str, gold: str, limit_s: float = 5.0) -> Verdict:
    """Whether a bare answer means the same as `gold`, both plain text or LaTeX. Callable from any thread.

    Words, numbers and equal texts are judged on the spot; what takes algebra by math-verify in the worker, one check at
    a time (see `math_check`). `limit_s` counts from the moment the worker takes the check; a check that exceeds it is
    undecided.
    """
    if (outcome := at_once(answer, gold)) is not None:
        return Verdict(*outcome)
    return _shared_worker().check(answer, gold, limit_s)


def close() -> None:
    """Ends the worker process, if there is one; a later check starts it anew. Runs at exit by itself."""
    _shared_worker().close()


class MathWorker:
    """The worker process, started at the first check, killed and started anew after one that hung. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()

    def check(self, answer: str, gold: str, limit_s: float) -> Verdict:
        with self._lock:
            try:
                jobs = self._start()
                print(json.dumps({"answer": answer, "gold": gold, "limit_s": limit_s}), file=jobs, flush=True)
                self._reply(START_LIMIT_S, "the worker of math-verify did not take the check")
                result = self._reply(limit_s, f"the check took longer than {limit_s:g} s")
            except OSError as error:
                self._kill()
                return Verdict(None, str(error))
            except BaseException:  # an interrupt: the reply still to come must not answer the next check
                self._kill()
                raise
            return Verdict(result["score"], result["reason"])

    def close(self) -> None:
        with self._lock:
            self._kill()

    def _start(self) -> IO[str]:
        """Where the worker takes its jobs; brings one up where none runs. Raises TaskError where that fails: without a
        worker every check would be undecided in silence."""
        if self._process is None:
            self._replies = queue.SimpleQueue()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],  # -P: this folder's gym.py must not pass for someone else's
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the run, which then closes the worker
            )
            threading.Thread(target=_listen, args=(self._process.stdout, self._replies), daemon=True).start()
            try:
                self._reply(START_LIMIT_S, "it was not ready in time")
            except OSError as error:
                hint = f"run {sys.executable} -P {WORKER} to see why"
                raise TaskError(f"tasks: the worker of math-verify did not start ({error}); {hint}") from error
        return cast(IO[str], self._process.stdin)

    def _reply(self, limit_s: float, late: str) -> Any:
        """The worker's next reply. Raises OSError, saying `late`, when it does not come in time or not at all."""
        try:
            line = self._replies.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(late) from None
        if not line:
            raise OSError("the worker of math-verify ended without a reply")
        return json.loads(line)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with suppress(OSError):
                cast(IO[str], self._process.stdin).close()
            self._process = None


def _listen(lines: IO[str], replies: "queue.SimpleQueue[str]") -> None:
    """Passes a worker's lines on; an empty one marks its end."""
    with lines:
        for line in lines:
            replies.put(line)
    replies.put("")


@cache
def _shared_worker() -> MathWorker:
    worker = MathWorker()
    atexit.register(worker.close)
    return worker


class MathFamily(Family):
    """Questions from a file: JSON lines with `question` and `answer`, checked by `verify_math`.

    An answer is text or a number; of a worked solution what `extract_answer` finds in it (GSM8K's end in "#### 18").

    settings: `path` of the .jsonl file; `seed` of the order (default 0); `limit_s` for one check (default 5). Repeated
    questions are taken once. A split's indices run through its questions in a shuffled order, again and again.
    Raises TaskError for unknown settings, for a file or line that cannot be read and for an answer that none can meet.
    """

    name = "math"

    def __init__(self, settings: Mapping[str, Any]):
        allowed = ("path", "seed", "limit_s")
        for key in settings:
            if key not in allowed:
                raise TaskError(f"tasks: family math has no setting {key!r}; it has {', '.join(allowed)}")
        if "path" not in settings:
            raise TaskError("tasks: family math needs the setting path: a .jsonl file of questions and answers")
        self.seed = settings.get("seed", 0)
        self._limit_s = float(settings.get("limit_s", 5.0))
        self._all = _read(Path(settings["path"]))
        self._of_split: dict[str, list[Problem]] = {split: [] for split in SPLIT_PERCENT}
        for problem in self._all:
            self._of_split[split_of(problem.prompt)].append(problem)
        for problems in self._of_split.values():
            Random(self.seed).shuffle(problems)

    def draw(self, ticket: int) -> Problem:
        return self._all[ticket % len(self._all)]

    def problem(self, split: str, index: int) -> Problem:
        check_split(split)
        if not (problems := self._of_split[split]):
            raise TaskError(f"tasks: family math: none of its {len(self._all)} questions is in split {split}; add some")
        return problems[index % len(problems)]

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return verify_math(answer, problem.answer, self._limit_s)


def _read(path: Path) -> list[Problem]:
    problems: dict[str, Problem] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"tasks: family math cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = str(row["question"]), str(row["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise TaskError(f"tasks: {path}:{number} is not a JSON object with question and answer: {error}") from error
        gold = extract_answer(answer)
        if why := fault(gold):
            raise TaskError(f"tasks: {path}:{number}: nobody can be right by the answer {gold[:80]!r}: {why}; mend it")
        problems.setdefault(normalised(question), Problem("math", question, gold))
    if not problems:
        raise TaskError(f"tasks: family math: {path} holds no questions")
    return list(problems.values())
