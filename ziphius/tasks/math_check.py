r"""Whether an answer means the same as the right one: by rules of our own where that takes no algebra, else by
math-verify.

Ours are the steps that math-verify does not take or takes otherwise (`tests/tasks/maths_pairs.jsonl` holds each of them
against it):

- Money, units, degrees: a unit on one side alone is taken for granted ("5" for `5\text{ cm}`); two units that we know
  must be the same, and nothing is converted. Unknown ones ("apples") are not compared.
- Percent: `p%` on one side alone stands for p/100, and for p itself from 1 on: `50%` is 0.5 and 50, `0.5%` is not 0.5.
- Numbers are compared exactly; a decimal of six places and digits or more also stands for what rounds to it (0.333333).
- Words, letters of a choice and times of the day are compared as text, without regard to case.
- `(1,2)`, `[1,2]` and `\{1,2\}` are three different things; each may stand without its brackets, but `[1,2]`.
- Numerals to a base: `40_9` is not `40_8`; "40" may stand for either.
"""

import re

from ziphius.tasks.math_notation import plain, untexted
from ziphius.tasks.math_number import numbers, same_numbers
from ziphius.tasks.math_units import Measured, split_unit
from ziphius.tasks.math_words import is_words, same_words

Outcome = tuple[float | None, str]
RIGHT: Outcome = (1.0, "right")
WRONG: Outcome = (0.0, "wrong")

LONGEST = 4096  # characters of an answer that is looked at; a longer one is none
RELATION = re.compile(r"=|\\approx\b|\\in\b")
ASSIGNED = re.compile(rf"(?:\\?[A-Za-z]+(?:_(?:\w|\{{\w+\}}))?(?:\([a-z]\))?)?\s*(?:{RELATION.pattern})\s*(?=[^=])")
BASED = re.compile(r"(-?\d[0-9A-Z.]*)\s*_\s*\{?\s*(\d+)\s*\}?")
JOINED = re.compile(r",?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*")


def check(answer: str, gold: str) -> Outcome:
    """Score (1 right, 0 wrong) and reason. A right answer that math-verify cannot read is compared as text.

    Raises what math-verify raises, and may take for ever: that is for the caller to see, who then calls it undecided.
    """
    if (outcome := at_once(answer, gold)) is not None:
        return outcome
    one, other = _compared(plain(answer), plain(gold))
    return RIGHT if _same_by_algebra(one.core, other.core) else WRONG


def at_once(answer: str, gold: str) -> Outcome | None:
    """The outcome where it takes no algebra, quickly whatever the texts; else None. A `gold` that is none (see `fault`)
    leaves all answers undecided."""
    if not answer.strip():
        return 0.0, "no answer"
    if answer.strip() == gold.strip():
        return RIGHT
    if why := fault(gold):
        return None, f"nobody can be right by the answer {gold[:80]!r}: {why}"
    if len(answer) > LONGEST:
        return 0.0, f"an answer of more than {LONGEST} characters"
    ours, theirs = plain(answer), plain(gold)
    if not ours:
        return 0.0, "no answer"
    if ours.replace(" ", "") == theirs.replace(" ", ""):
        return RIGHT
    if (same := same_words(ours, theirs)) is not None:
        return RIGHT if same else WRONG
    one, other = _compared(ours, theirs)
    if one.unit and other.unit and one.unit != other.unit:
        return 0.0, f"wrong: in {one.unit}, not {other.unit}"
    if (ends := _ends(one.core)) and _ends(other.core) not in (None, ends):
        return 0.0, "wrong: other brackets"
    if (same := _same_numeral(one.core, other.core)) is None:
        same = _same_numbers(one, other)
    return None if same is None else RIGHT if same else WRONG


def fault(gold: str) -> str | None:
    """Why a right answer cannot be one: it is empty, or its braces, brackets or fractions are not complete. None where
    nothing is amiss."""
    text = plain(gold)
    if not text.strip("$ "):
        return "it is empty"
    if not is_words(text) and sum(map(text.count, "([")) != sum(map(text.count, ")]")):
        return "a bracket has no other"
    text = re.sub(r"\\(?:\\|[{}])", " ", text)
    while (closed := re.sub(r"\{[^{}]*\}", "\0", text)) != text:  # what stands in braces is one thing
        text = closed
    if "{" in text or "}" in text:
        return "a brace has no other"
    if re.search(r"\\frac(?!\s*[^\s=+,)]\s*[^\s=+,)])", text):
        return r"a \frac lacks a part"
    return None


def _compared(ours: str, theirs: str) -> tuple[Measured, Measured]:
    r"""Both without `x =`, `\approx` and `x \in` where one of them has it or both the same, and without their units."""
    names = [ASSIGNED.match(text) if len(RELATION.findall(text)) == 1 else None for text in (ours, theirs)]
    if not all(names) or len({name[0].replace(" ", "") for name in names if name}) == 1:
        ours, theirs = (text[name.end() :] if name else text for text, name in zip((ours, theirs), names, strict=True))
    return split_unit(ours), split_unit(theirs)


def _ends(text: str) -> str | None:
    """The kind of brackets, where the whole text is one pair around several things: `()`, `[)`, `{}`. Three things or
    more are no interval, so that `[]` is `()`."""
    text = text.replace(r"\{", "{").replace(r"\}", "}")
    depth = commas = 0
    for place, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        commas += sign == "," and depth == 1
        if depth == 0 and place < len(text) - 1:
            return None
    ends = text[:1] + text[-1:]
    return ("()" if commas > 1 and ends == "[]" else ends) if commas else None


def _same_numeral(one: str, other: str) -> bool | None:
    """Whether two numerals with a base (`40_9`) are the same; None where neither has one."""
    mine, right = BASED.fullmatch(one), BASED.fullmatch(other)
    if mine and right:
        return mine.groups() == right.groups()
    if mine or right:
        return (mine[1] if mine else one) == (right[1] if right else other)
    return None


def _same_numbers(one: Measured, other: Measured) -> bool | None:
    """Whether both list the same numbers, or one, percent or not; None where something else is among them."""
    mine, right = numbers(one.core), numbers(other.core)
    if mine is None or right is None:
        return None
    if (one.unit == "%") == (other.unit == "%"):
        return same_numbers(mine, right)
    percents, bare = (mine, right) if one.unit == "%" else (right, mine)
    as_they_stand = all(abs(percent.value) >= 1 for percent in percents) and same_numbers(percents, bare)
    return as_they_stand or same_numbers([percent.hundredth() for percent in percents], bare)


def _same_by_algebra(answer: str, gold: str) -> bool:
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig, NormalizationConfig

    rules = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
    reading = [LatexExtractionConfig(normalization_config=rules, boxed_match_priority=-1)]
    found = []
    for text in (gold, answer):
        text = JOINED.sub(", ", untexted(text)).replace("$", "")
        # Its own alarms stay off: they count a late check as wrong.
        found.append(parse(f"${text}$", reading, "no_fallback", parsing_timeout=None, raise_on_error=True))
    if not all(found):
        return False
    return verify(*found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
