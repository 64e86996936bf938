"""Families whose questions and answers stand in a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from ziphius.tasks.base import SPLIT_PERCENT, Family, Problem, TaskError, check_split, normalised, split_of


class QuestionFamily(Family):
    """Questions from a .jsonl file: one JSON object with `question` and `answer` (text or a number) a line.

    settings: `path` of the file; `seed` of the order (default 0); `allowed` names what else a family takes. Repeated
    questions are taken once. A split's indices run through its questions in a shuffled order, again and again. The
    whole object of a line is its problem's `metadata`.
    Raises TaskError for unknown settings and for a file or line that cannot be read.
    """

    def __init__(self, settings: Mapping[str, Any], *allowed: str):
        allowed = ("path", "seed", *allowed)
        for key in settings:
            if key not in allowed:
                raise TaskError(f"tasks: family {self.name} has no setting {key!r}; it has {', '.join(allowed)}")
        if "path" not in settings:
            raise TaskError(f"tasks: family {self.name} needs the setting path: a .jsonl file of questions and answers")
        self.seed = settings.get("seed", 0)
        self._all = self._read(Path(settings["path"]))
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
            count = len(self._all)
            raise TaskError(f"tasks: family {self.name}: none of its {count} questions is in split {split}; add some")
        return problems[index % len(problems)]

    def gold(self, answer: str, place: str) -> str:
        """The right answer that a line (of file and number `place`) states; raises TaskError where it states none."""
        return answer

    def _read(self, path: Path) -> list[Problem]:
        problems: dict[str, Problem] = {}
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            mend = "correct path, relative to where the command is started"
            raise TaskError(f"tasks: family {self.name} cannot read {path}: {error.strerror}; {mend}") from error
        except UnicodeDecodeError as error:
            raise TaskError(f"tasks: family {self.name} cannot read {path}: {error}; save it as UTF-8") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                question, answer = str(row["question"]), str(row["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise TaskError(
                    f"tasks: {path}:{number} is not a JSON object with question and answer: {error}"
                ) from error
            gold = self.gold(answer, f"{path}:{number}")
            problems.setdefault(normalised(question), Problem(self.name, question, gold, row))
        if not problems:
            raise TaskError(f"tasks: family {self.name}: {path} holds no questions")
        return list(problems.values())
