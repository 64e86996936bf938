"""Numbers read exactly: integers, decimals, fractions, mixed numbers, powers of ten, as people and TeX write them."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPONENT = 400
MAX_CHARACTERS = 400
ENOUGH_DIGITS = 6  # from here on a decimal may stand for the number it is rounded from, as math-verify has it

DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+"
PART = rf"(?:\{{\s*([+-]?)\s*({DECIMAL})\s*\}}|()(\d))"  # of a \frac: in braces, or a single digit
NUMBER = re.compile(rf"([+-]?)\s*({DECIMAL})")
TEN_TO_THE = r"(?:\\times|\\cdot|\*|[xX])\s*10\s*\^\s*\{?\s*([+-]?\d{1,9})\s*\}?"
SCIENTIFIC = re.compile(rf"([+-]?)\s*({DECIMAL})\s*{TEN_TO_THE}")
EXPONENT = re.compile(rf"([+-]?)\s*({DECIMAL})[eE]([+-]?\d{{1,9}})")
RATIO = re.compile(rf"([+-]?)\s*(?:(\d+) )?\s*({DECIMAL})\s*/\s*({DECIMAL})")
FRAC = re.compile(rf"([+-]?)\s*(\d+)?\s*\\frac\s*{PART}\s*{PART}")

COMMA_SPACE = re.compile(r"(?:[,;] +(?:and |or )?| (?:and|or) )")
COMMA = re.compile(r"[,;] *")


@dataclass(frozen=True)
class Number:
    """A number and how many digits stand behind its point; None where it is no decimal."""

    value: Fraction
    places: int | None = None

    def rounds(self, other: Fraction) -> bool:
        """Whether this is a decimal of six places and six digits or more to which `other` rounds."""
        if self.places is None or self.places < ENOUGH_DIGITS:
            return False
        unit = Fraction(1, 10**self.places)
        return abs(self.value) >= unit * 10 ** (ENOUGH_DIGITS - 1) and 2 * abs(self.value - other) <= unit

    def hundredth(self) -> "Number":
        """What this many percent are."""
        return Number(self.value / 100, None if self.places is None else self.places + 2)


def number(text: str) -> Number | None:
    """The number that all of `text` (see `plain`) stands for, None where it is none or has more than 400 digits."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return None
    if match := NUMBER.fullmatch(text):
        return _decimal(match[1], match[2])
    if match := SCIENTIFIC.fullmatch(text) or EXPONENT.fullmatch(text):
        mantissa, exponent = _decimal(match[1], match[2]), int(match[3])
        if abs(exponent) > MAX_EXPONENT:
            return None
        places = None if mantissa.places is None else max(mantissa.places - exponent, 0)
        return Number(mantissa.value * Fraction(10) ** exponent, places)
    if match := RATIO.fullmatch(text):
        sign, whole, above, below = match.groups()
        return _fraction(sign, whole, _decimal("", above).value, _decimal("", below).value)
    if match := FRAC.fullmatch(text):
        sign, whole, *parts = match.groups()
        above, below = (_decimal(a or c or "", b or d).value for a, b, c, d in (parts[:4], parts[4:]))
        return _fraction(sign, whole, above, below)
    return None


def numbers(text: str) -> list[Number] | None:
    """The numbers that `text` lists without brackets, at least one; None where something else is among them."""
    for comma in (COMMA_SPACE, COMMA):  # 1,000, 2,000 but also 1,2
        found = [number(item) for item in comma.split(text)]
        if all(found):
            return [item for item in found if item]
    return None


def same_numbers(ones: list[Number], others: list[Number]) -> bool:
    """Whether both list the same numbers, in any order, once or more than once."""
    pairs = (ones, others), (others, ones)
    return all(any(same_number(one, other) for other in right) for left, right in pairs for one in left)


def same_number(one: Number, other: Number) -> bool:
    """Equal; or one is a long decimal (0.333333) and the other (1/3) rounds to it."""
    return one.value == other.value or one.rounds(other.value) or other.rounds(one.value)


def _decimal(sign: str, digits: str) -> Number:
    digits = digits.replace(",", "").replace(" ", "")
    _, point, behind = digits.partition(".")
    return Number(Fraction(sign + digits.rstrip(".")), len(behind) if point else None)


def _fraction(sign: str, whole: str | None, above: Fraction, below: Fraction) -> Number | None:
    """`whole` and above/below together, as mixed numbers have it."""
    if below == 0 or (whole and not 0 <= above / below < 1):
        return None
    value = int(whole or 0) + above / below
    return Number(-value if sign == "-" else value)
