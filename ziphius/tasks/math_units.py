r"""Units beside an answer: `$5`, `50\%`, `30^\circ`, `5\text{ cm}`, `15 square feet`, "5 apples"."""

import re
from typing import NamedTuple

from ziphius.tasks.math_notation import TEXT, untexted

NAMES = {
    "$": "$ usd dollar dollars buck bucks", "cent": "cent cents ¢", "€": "€ eur euro euros", "£": "£ gbp",
    "¥": "¥ yen yuan", "₹": "₹ rs rupee rupees", "%": "% percent percentage pct", "degree": "degree degrees deg degs",
    "rad": "rad radian radians", "km": "km kilometer kilometers kilometre kilometres",
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "mile": "mile miles mi", "yard": "yard yards yd yds",
    "foot": "foot feet ft", "inch": "inch inches in", "kg": "kg kilogram kilograms", "g": "g gram grams gm gms",
    "mg": "mg milligram milligrams", "pound": "pound pounds lb lbs", "ounce": "ounce ounces oz", "ton": "ton tons",
    "tonne": "tonne tonnes", "l": "l L liter liters litre litres", "ml": "ml mL milliliter milliliters",
    "gallon": "gallon gallons gal", "s": "s sec secs second seconds", "min": "min mins minute minutes",
    "h": "h hr hrs hour hours", "day": "day days", "week": "week weeks", "month": "month months",
    "year": "year years yr yrs", "mph": "mph mi/h miles/hour mile/hour", "km/h": "km/h kmh kph kmph", "m/s": "m/s",
}  # fmt: skip
UNITS = {name: unit for unit, names in NAMES.items() for name in names.split()}
POWERS = {"square": "^2", "sq": "^2", "sq.": "^2", "cubic": "^3", "cu": "^3", "cu.": "^3"}
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "max", "min", "gcd", "lcm", "mod",
    "det", "lim", "and", "or",
}  # fmt: skip

MONEY_BEFORE = re.compile(r"([+-]?)\s*(?:US|USD)?\s*([$€£¥₹])\s*(?=[-\d.\\(])(.+)")
SIGN_AFTER = re.compile(r"(.*[\d}) ])\s*(\\?%|[$€£¥₹¢])")
DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*([CFK](?![A-Za-z]))?")
TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
TEXT_AFTER = re.compile(rf"(.*[^\s=,+*/(\[{{-])\s*{TEXT.pattern}\s*(\^\s*\{{?\d\}}?)?")
WORDS_AFTER = re.compile(
    r"(.*(?:[\d})]|\\pi(?= [a-z]{2})))( ?)([A-Za-z][A-Za-z./]*(?: [A-Za-z./]+){0,5})(\s*\^\s*\{?[23]\}?)?"
)


class Measured(NamedTuple):
    """An answer without its unit, and the unit: a key of `NAMES` with its power (`cm^2`), "" where there is none or it
    is one we do not know ("apples")."""

    core: str
    unit: str


def split_unit(text: str) -> Measured:
    """Takes the unit off an answer in `plain` notation."""
    if match := MONEY_BEFORE.fullmatch(text):
        sign, currency, core = match.groups()
        return Measured(sign + split_unit(core).core, UNITS[currency])
    if match := SIGN_AFTER.fullmatch(text):
        return Measured(match[1].strip(), UNITS[match[2].removeprefix("\\")])
    if (match := TEXT_AFTER.fullmatch(text)) and (unit := _unit(untexted(match[2]), match[3])) is not None:
        return Measured(_without_degrees(match[1]).core, unit)
    if (match := WORDS_AFTER.fullmatch(text)) and _is_unit(match[3], bool(match[2])):
        return Measured(match[1], _unit(match[3], match[4]) or "")
    return _without_degrees(text)


def _without_degrees(text: str) -> Measured:
    r"""Angles inside `\cos 58^\circ` are numbers, times pi/180; elsewhere the sign is a unit."""
    if not (match := DEGREES.search(text)):
        return Measured(text, "")
    if TRIGONOMETRY.search(text):
        return Measured(re.sub(r"(\d+(?:\.\d+)?)" + DEGREES.pattern, r"{(\1 \\pi/180)}", text), "")
    return Measured(DEGREES.sub("", text).strip(), "degree" + (match[1] or ""))


def _unit(words: str, power: str | None) -> str | None:
    """The unit that words stand for, "" for one we do not know, None where they are no unit at all."""
    words = words.strip().rstrip(".")
    if not words or words in ("and", "or") or not re.fullmatch(r"[A-Za-z%$'. /-]+", words):
        return None
    first, _, rest = words.partition(" ")
    exponent = "^" + re.sub(r"\D", "", power) if power else POWERS.get(first.lower(), "")
    name = (rest if first.lower() in POWERS else words).replace(" per ", "/")
    unit = UNITS.get(name) or UNITS.get(name.lower())
    return unit + exponent if unit else ""


def _is_unit(words: str, apart: bool) -> bool:
    """Whether bare words behind a number are a unit and not variables or a function: `5 m`, `5cm`, `5 red apples`."""
    first = words.split()[0]
    if first.rstrip(".").lower() in FUNCTIONS - {"min", "sec"} or first in ("x", "y", "z", "i", "e"):
        return False
    known = words.rstrip(".").replace(" per ", "/") in UNITS or first.lower() in POWERS
    if known:
        return apart or len(words) > 1
    return apart and all(len(word) >= 3 or word in ("of", "in", "a") for word in words.split()) and len(first) >= 3
