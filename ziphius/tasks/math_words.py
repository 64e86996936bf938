r"""Answers that are words and no mathematics: names, letters of a choice, times of the day, "no solution"."""

import re

from ziphius.tasks.math_notation import TEXT, untexted
from ziphius.tasks.math_units import FUNCTIONS

WORDS = re.compile(r"[A-Za-z][A-Za-z'.-]+(?:[ ,:;&]+[A-Za-z0-9'.-]+)*[!?]?")
TIME = re.compile(r"(\d{1,2})(?::(\d\d))? ?([ap])\.? ?m\.?", re.IGNORECASE)
CHOICE = re.compile(r"\(([A-Za-z])\)(?: .*)?|([A-H])(?:[.:)](?: .*)?)?|([a-h])[.:)](?: .*)?", re.DOTALL)
CHOICES = re.compile(r"[A-Z](?:(?: ?,| and)+ ?[A-Z])+")
NOTHING = {
    "no solution": {
        r"\emptyset", r"\{\}", "{}", "none", "empty set", "the empty set", "no solutions", "no real solution",
        "no real solutions", "there is no solution", "there are no solutions",
    },
    "does not exist": {"dne", "undefined", "doesn't exist", "not defined"},
}  # fmt: skip
SAME = {other: said for said, others in NOTHING.items() for other in others}


def is_words(gold: str) -> bool:
    """Whether a right answer in `plain` notation is words."""
    text = untexted(gold)
    if folded(text) in NOTHING or CHOICE.fullmatch(text) or CHOICES.fullmatch(text) or TIME.fullmatch(text):
        return True
    return bool(WORDS.fullmatch(text)) and text.split()[0].lower() not in FUNCTIONS


def same_words(answer: str, gold: str) -> bool | None:
    """Whether an answer says what the right one does, both in `plain` notation, capital letters or not; None where the
    right one is no words, or where it may as well be a product of variables (`abc`)."""
    if not is_words(gold):
        return None
    same = folded(answer) == folded(gold)
    sure = TEXT.search(gold) or not re.fullmatch(r"[A-Za-z]{1,3}", gold)
    return same if same or sure else None


def folded(text: str) -> str:
    """What is the same for texts that say the same."""
    text = untexted(text)
    if time := TIME.fullmatch(text):
        hour, minute, half = time.groups()
        return f"{int(hour)}:{minute or '00'} {half.lower()}m"
    if choice := CHOICE.fullmatch(text):
        return next(filter(None, choice.groups())).lower()
    if CHOICES.fullmatch(text):
        return ",".join(sorted(re.findall("[A-Z]", text)))
    text = text.lower().strip(" \"'.,!?")
    return SAME.get(text, text)
