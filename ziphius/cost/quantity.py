"""Amounts as people write them on the command line: 14.8T tokens, 2024-12 for a date."""

from __future__ import annotations

import re
from datetime import date as Date

_SCALES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def parse_amount(text: str, option: str) -> float:
    """Read `14.8T`, `2.5e9` or `400`. Raises ValueError naming the option."""
    match = re.fullmatch(r"([\d_.]+(?:[eE][+-]?\d+)?)\s*([KMBGTkmbgt]?)", text.strip())
    try:
        value = float(match[1].replace("_", "")) * _SCALES[match[2].upper()] if match else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ValueError(f"{option} {text}: write an amount above zero such as 14.8T, 500M or 1e9")
    return value


def parse_day(text: str, option: str) -> Date:
    """Read `2024-12` (its first day) or `2024-12-27`. Raises ValueError naming the option."""
    try:
        return Date.fromisoformat(text if len(text) > 7 else f"{text}-01")
    except ValueError:
        raise ValueError(f"{option} {text}: write a date such as 2024-12 or 2024-12-27") from None


def choice(value: str, known: tuple[str, ...], option: str) -> str:
    """`value` where it is `known`. Raises ValueError listing what there is."""
    if value.lower() not in known:
        raise ValueError(f"{option} {value}: it is one of {', '.join(known)}")
    return value.lower()


def precision(value: str) -> str:
    """bf16, fp8 or fp4; mxfp8 and nvfp4 are such with scales of blocks. Raises ValueError listing them."""
    aliases = {"mxfp8": "fp8", "nvfp4": "fp4", "mxfp4": "fp4", "fp16": "bf16"}
    return choice(aliases.get(value.lower(), value), ("bf16", "fp8", "fp4"), "--precision")


def short(value: float) -> str:
    """A number in few characters: 1,542 or 2.79M or 14.8T."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(value) >= scale:
            return f"{value / (1e3 if letter == 'K' else scale):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def dollars(value: float) -> str:
    """Money in few characters: $5.58M, $0.30."""
    return f"${short(value)}" if value >= 1e4 else f"${value:,.2f}"
