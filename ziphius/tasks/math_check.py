"""Whether two answers in free mathematical notation mean the same, by math-verify. Runs in a worker (`worker.py`)."""

import re
from fractions import Fraction

PLAIN_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d{1,400})(\.\d{1,400})?")


def at_once(answer: str, gold: str) -> tuple[float | None, str] | None:
    """Score and reason where it takes no algebra to judge: equal texts and whole numbers. None for all else."""
    answer, gold = answer.strip(), gold.strip()
    if not answer:
        return 0.0, "no answer"
    if answer == gold:
        return 1.0, "right"
    if PLAIN_NUMBER.fullmatch(answer) and PLAIN_NUMBER.fullmatch(gold):
        one, other = (Fraction(text.replace(",", "")) for text in (answer, gold))
        if one == other:
            return 1.0, "right"
        if one.denominator == other.denominator == 1:  # math-verify rounds fractions, so those are its to judge
            return 0.0, "wrong"
    return None


def check(answer: str, gold: str) -> tuple[float | None, str]:
    """Score and reason. Math-verify's own alarms stay off: they count a late check as wrong."""
    from math_verify import parse, verify

    parsed_gold = parse(_marked(gold), parsing_timeout=None, raise_on_error=True)
    if not parsed_gold:
        return None, f"math-verify cannot read the right answer {gold[:80]!r}"
    parsed_answer = parse(_marked(answer), parsing_timeout=None, raise_on_error=True)
    if not parsed_answer:
        return 0.0, "no mathematics in the answer"
    right = verify(parsed_gold, parsed_answer, timeout_seconds=None, raise_on_error=True)
    return (1.0, "right") if right else (0.0, "wrong")


def _marked(text: str) -> str:
    """Math-verify looks for marked LaTeX; a bare answer is marked as a whole."""
    return text if any(mark in text for mark in ("$", r"\(", r"\[", r"\boxed")) else rf"\boxed{{{text}}}"
