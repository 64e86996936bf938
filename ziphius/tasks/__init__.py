"""Problem families with sure checkers: where the rewards come from."""

from ziphius.tasks.answers import extract_answer
from ziphius.tasks.base import Family, Problem, TaskError, Verdict, assert_disjoint, split_of
from ziphius.tasks.mathematics import verify_math
from ziphius.tasks.registry import family_names, make_family

__all__ = [
    "Family",
    "Problem",
    "TaskError",
    "Verdict",
    "assert_disjoint",
    "extract_answer",
    "family_names",
    "make_family",
    "split_of",
    "verify_math",
]
