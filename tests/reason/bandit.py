"""The smallest problems there are: answer with the right letter."""

from __future__ import annotations

from ziphius.tasks.base import Family, Problem, Verdict

LETTERS = "abcd"
QUESTIONS = {"whale": "c", "dives": "a", "deep": "d"}


class Bandit(Family):
    """The right letter depends on the question. `undecided` letters get no verdict."""

    def __init__(self, name: str = "bandit", undecided: str = "") -> None:
        self.name, self.undecided = name, undecided

    def draw(self, ticket):
        question = list(QUESTIONS)[ticket % len(QUESTIONS)]
        return Problem(self.name, question, QUESTIONS[question])

    def problem(self, split, index):
        return self.draw(index)

    def verify(self, problem, answer):
        if answer and answer in self.undecided:
            return Verdict(None, "cannot tell")
        return Verdict(float(answer == problem.answer), "compared")
