"""Families by name."""

from difflib import get_close_matches
from typing import Any

from ziphius.tasks.base import Family, TaskError
from ziphius.tasks.gym import GymFamily, Writer


def family_names() -> list[str]:
    """Every name `make_family` takes: `math` and all of reasoning-gym's."""
    from reasoning_gym.factory import DATASETS

    return sorted(["math", *DATASETS])


def make_family(name: str, **settings: Any) -> Family:
    """The family of that name with these settings (reasoning-gym's own config fields; for `math` the path of its file).

    Raises TaskError, in one line, for an unknown name or setting and for settings the family refuses.
    """
    if name == "math":
        from ziphius.tasks.mathematics import MathFamily

        return MathFamily(settings)
    if name not in (names := family_names()):
        close = get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}" if close else "family_names() lists all"
        raise TaskError(f"tasks: unknown family {name!r}; {hint}")
    return GymFamily(name, settings, _writer(name))


def _writer(name: str) -> Writer | None:
    if name == "leg_counting":
        from ziphius.tasks.legs import LegWriter

        return LegWriter()
    if name == "chain_sum":
        from ziphius.tasks.sums import SumWriter

        return SumWriter()
    return None
