"""Arithmetic that is shown as it is done: named numbers with units and sources, and expressions over them."""

from __future__ import annotations

import ast
import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field

from ziphius.cost.rows import Row

_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Number:
    """A value with its unit ($, GPU-hours, share, times, …). `source` says who published it or what computes it."""

    value: float
    unit: str
    title: str = ""
    source: str = ""
    confidence: str = ""

    def __str__(self) -> str:
        """As people write it: $5.576M, 3.4%, 11.1 times, 2,048 GPUs."""
        if self.unit == "share":
            return f"{_digits(100 * self.value, 3)}%"
        if self.unit.startswith("$"):
            return f"{money(self.value)}{self.unit[1:].replace('/h', ' an hour')}"
        return f"{plain(self.value)} {self.unit}".strip()

    @property
    def bare(self) -> str:
        """Without the unit's name, as it stands in a formula."""
        return str(self) if self.unit == "share" else money(self.value) if self.unit[:1] == "$" else plain(self.value)


class Input(Row):
    """A row of claims.toml."""

    name: str
    title: str
    value: Annotated[float, Field(gt=0)]
    unit: str


@cache
def published() -> Mapping[str, Number]:
    """The inputs of claims.toml by name."""
    text = files("ziphius.cost").joinpath("data", "claims.toml").read_text("utf-8")
    rows = [Input(**row) for row in tomllib.loads(text)["input"]]
    return {
        row.name: Number(row.value, row.unit, row.title, f"{row.source} ({row.date})", row.confidence) for row in rows
    }


@dataclass(frozen=True)
class Step:
    """One line of arithmetic: `formula` is written with the numbers themselves."""

    label: str
    formula: str
    result: Number


@dataclass
class Working:
    """Does arithmetic and keeps it: the steps in order and every input that entered."""

    steps: list[Step] = field(default_factory=list)
    inputs: dict[str, Number] = field(default_factory=dict)

    def __call__(self, label: str, expression: str, unit: str, **numbers: Number) -> Number:
        """Evaluate `expression` (+ − × ÷ and brackets over the names given) and keep the step."""
        result = Number(evaluate(expression, {name: number.value for name, number in numbers.items()}), unit, label)
        self.inputs |= {name: number for name, number in numbers.items() if number.source}
        self.steps.append(Step(label, f"{written(expression, numbers)} = {result}", result))
        return result

    def note(self, name: str, number: Number) -> Number:
        """Keep a number that enters no formula but the verdict."""
        self.inputs[name] = number
        return number


def evaluate(expression: str, values: Mapping[str, float]) -> float:
    """The value of a formula of names, numbers, + - * / and brackets. Raises ValueError for anything else."""

    def walk(node: ast.AST) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name):
            return values[node.id]
        raise ValueError(f"{expression}: only names, numbers, + - * / and brackets")

    return walk(ast.parse(expression, mode="eval").body)


def written(expression: str, numbers: Mapping[str, Number]) -> str:
    """The formula with each name replaced by its number."""
    text = re.sub(r"\b[a-z_][a-z_0-9]*\b", lambda match: numbers[match.group()].bare, expression)
    text = re.sub(r"\b1e(\d+)\b", lambda match: f"10{match.group(1).translate(_SUPERSCRIPT)}", text)
    return text.replace("*", "×").replace("/", "÷").replace("-", "−")


def money(dollars: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(dollars) >= size * (10 if unit == "K" else 1):
            return f"${_digits(dollars / size, 4)}{unit}"
    return f"${dollars:,.2f}" if abs(dollars) >= 0.1 else f"${dollars:.3g}"


def plain(value: float) -> str:
    for size, unit in ((1e15, ""), (1e12, " trillion"), (1e9, " billion")):
        if abs(value) >= size:
            if unit:
                return f"{_digits(value / size, 4)}{unit}"
            mantissa, _, power = f"{value:.3g}".partition("e+")
            return f"{mantissa}×10{power.translate(_SUPERSCRIPT)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:g}" if value == round(value, 2) else _digits(value, 3)


def _digits(value: float, count: int) -> str:
    """`count` significant digits without trailing zeros, and never fewer than the whole part has."""
    whole = len(f"{abs(value):.0f}")
    text = f"{value:,.{max(count - whole, 0)}f}" if abs(value) >= 1 else f"{value:.{count}g}"
    return text.rstrip("0").rstrip(".") if "." in text else text
