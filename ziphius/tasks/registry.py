"""Families by name."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from ziphius.tasks.base import Family, TaskError
from ziphius.tasks.gym import GymFamily, Writer
from ziphius.tasks.mathematics import MathFamily
from ziphius.tasks.own import OwnFamily

# Families beside reasoning-gym's.
FAMILIES: dict[str, Callable[[Mapping[str, Any]], Family]] = {"math": MathFamily, "own": OwnFamily}


def family_names() -> list[str]:
    """Every name `make_family` takes: those of `FAMILIES` and all of reasoning-gym's."""
    from reasoning_gym.factory import DATASETS

    return sorted([*FAMILIES, *DATASETS])


def make_family(name: str, **settings: Any) -> Family:
    """The family of that name with these settings (reasoning-gym's own config fields and `limit_s`; for the others
    see their classes).

    Raises TaskError, in one line, for an unknown name or setting and for settings the family refuses.
    """
    if name in FAMILIES:
        return FAMILIES[name](settings)
    if name not in (names := family_names()):
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}" if close else "family_names() lists all"
        raise TaskError(f"tasks: unknown family {name!r}; {hint}")
    return GymFamily(name, settings, _writer(name))


def family_files(settings: Mapping[str, Any]) -> list[str]:
    """The files that problems and verdicts of a family with these settings come from: questions, and a checker."""
    checker, _, _ = str(settings.get("verifier", "")).rpartition(":")
    return [str(path) for path in (settings.get("path"), checker) if path]


def _writer(name: str) -> Writer | None:
    if name == "leg_counting":
        from ziphius.tasks.legs import LegWriter

        return LegWriter()
    if name == "chain_sum":
        from ziphius.tasks.sums import SumWriter

        return SumWriter()
    return None
