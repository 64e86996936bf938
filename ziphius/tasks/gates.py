"""What an answer must look like before a checker of reasoning-gym that would evaluate it gets to see it.

Nine families' checkers call `eval` on the answer's text, or sympy's `parse_expr`, which does. Each has a gate here: the
answer is parsed, never run, and passes only as the data that the family asks for, of bounded size. What does not pass
is wrong. Other gates are for checkers that say yes to everything, or to what is no number, or work out 1e999999999.
"""

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

MAX_CHARACTERS = 10_000
MAX_BITS = 20_000  # of the numerators and denominators that an expression works out
MAX_EXPONENT = 1000
# sympy and Fraction work 1e999999999 out digit by digit, and 1e-999999999 too, which Python takes for zero
LONG_EXPONENT = re.compile(r"[\d.]e[+-]?\d{4}", re.IGNORECASE)
# No Integral or Derivative: an integral left undone would be right for every question.
FUNCTIONS = {
    "sqrt", "exp", "log", "ln", "Abs", "abs", "Rational", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos",
    "atan", "acot", "asec", "acsc", "sinh", "cosh", "tanh", "coth", "sech", "csch", "asinh", "acosh", "atanh", "acoth",
    "erf", "erfc", "erfi", "Ei", "li", "Si", "Ci", "Shi", "Chi", "fresnels", "fresnelc",
}  # fmt: skip


class Refused(ValueError):
    """An expression is not what its family asks for, as the message says."""


def refusal(family: str, answer: str, entry: dict[str, Any]) -> str | None:
    """Why an answer cannot be right, or None: then the family's own checker is to say. entry: reasoning-gym's."""
    gate = GATES.get(family)
    known = (entry["answer"], *entry["metadata"].get("valid_answers", ()))
    if gate is None or answer in known:  # the right texts are data of the family's own
        return None
    try:
        gate(answer, entry)
    except Refused as error:
        return str(error)
    except (ArithmeticError, RecursionError):  # a division by zero; more than a float holds; too deep
        return "no number that can be worked out"
    return None


def _list(answer: str, entry: dict[str, Any]) -> None:
    """A list or tuple of numbers and texts, lists among them; or one text."""
    plain = (ast.Expression, ast.List, ast.Tuple, ast.Load, ast.UnaryOp, ast.USub)
    for node in ast.walk(_parsed(answer)):
        if not (
            isinstance(node, plain) or (isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)))
        ):
            raise Refused("not a list")


def _arithmetic(answer: str, entry: dict[str, Any]) -> None:
    """Numbers with operators and parentheses."""
    _size(_parsed(answer).body, functions=None)


def _polynomial(answer: str, entry: dict[str, Any]) -> None:
    """Numbers and letters with operators and parentheses."""
    _size(_parsed(answer).body, functions=set())


def _formula(answer: str, entry: dict[str, Any]) -> None:
    """The same with known functions."""
    _size(_parsed(answer).body, functions=FUNCTIONS)


def _truth(answer: str, entry: dict[str, Any]) -> None:
    """The right word: `game_of_life_halting` takes every text for true, even "False"."""
    if answer.strip().lower() != entry["answer"].lower():
        raise Refused(f"not {entry['answer']}")


def _number(answer: str, entry: dict[str, Any]) -> None:
    """No NaN, which to these checkers is as near to every number as can be."""
    if "nan" in answer.lower():
        raise Refused("not a number")
    if LONG_EXPONENT.search(answer):
        raise Refused("too large a number")


GATES: dict[str, Callable[[str, dict[str, Any]], None]] = {
    "binary_matrix": _list,
    "n_queens": _list,
    "spiral_matrix": _list,
    "string_insertion": _list,
    "countdown": _arithmetic,
    "puzzle24": _arithmetic,
    "polynomial_multiplication": _polynomial,
    "simple_integration": _formula,
    "intermediate_integration": _formula,
    "game_of_life_halting": _truth,
    "complex_arithmetic": _number,
    "number_sorting": _number,
    "coin_flip": _number,
}


def _parsed(answer: str) -> ast.Expression:
    if len(answer) > MAX_CHARACTERS:
        raise Refused(f"longer than {MAX_CHARACTERS} characters")
    if LONG_EXPONENT.search(answer):
        raise Refused("too large a number")
    try:
        return ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused("not an expression") from error


def _size(node: ast.expr, functions: set[str] | None) -> tuple[float, float | None]:
    """How many bits the rational number that an expression stands for may take, and the number, as a float; (0, None)
    for one with letters. functions: the names that may be called; None where there may be no letters either.

    Raises Refused for all else than numbers, letters, operators and calls, and for sizes beyond the limits.
    """
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return (number.bit_length() if isinstance(number, int) else 64), float(number)
        case ast.Name(id=name) if functions is not None and name.isascii() and (len(name) == 1 or name == "pi"):
            return 0, None
        case ast.Call(func=ast.Name(id=name), args=[_] | [_, _], keywords=[]) if functions and name in functions:
            for argument in node.args:
                _size(argument, functions)
            return 0, None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            bits, value = _size(operand, functions)
            return bits, -value if value is not None and isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_size(left, functions), _size(right, functions))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in OPERATIONS:
            (bits, value), (more, other) = _size(left, functions), _size(right, functions)
            if bits + more > MAX_BITS:
                raise Refused("too large a number")
            known = value is not None and other is not None
            return bits + more + 1, OPERATIONS[type(operation)](value, other) if known else None
    raise Refused(f"more than numbers{'' if functions is None else ', letters'} and operators")


def _power(base: tuple[float, float | None], exponent: tuple[float, float | None]) -> tuple[float, float | None]:
    (bits, value), (_, times) = base, exponent
    if times is None:
        return 0, None
    if not (abs(times) <= MAX_EXPONENT and bits * abs(times) <= MAX_BITS):  # so that what is no number is refused too
        raise Refused("too large a number")
    power = None if value is None else value**times
    return bits * max(1.0, abs(times)), abs(power) if isinstance(power, complex) else power


OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
