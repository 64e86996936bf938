"""The numbers an evaluation reports, each with how sure it is: pass@k, majority vote and confidence intervals."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of `k` samples is right, estimated without bias from `c` right ones among `n`.

    1 - C(n-c, k) / C(n, k), as a product that neither overflows nor cancels. Source: Chen et al. 2021
    (arXiv:2107.03374), equation 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k: n = {n}, c = {c}, k = {k} must fulfil 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def majority(answers: Sequence[str], verdicts: Sequence[bool | None]) -> float:
    """maj@k of one problem: whether the answer given most often by its `k` samples is right.

    answers: one for each sample, equal texts being one vote together; an empty one has no vote. verdicts: right, wrong
    or None (undecided) for each. A tie counts in expectation: the share of the tied answers that are right, so the
    order of samples does not matter. A winner that is undecided each time it was judged is not right. Returns 0 where
    nobody votes. Raises ValueError where equal answers have been judged both right and wrong.
    """
    judged = defaultdict(set)
    votes: Counter[str] = Counter()
    for answer, verdict in zip(answers, verdicts, strict=True):
        if answer := answer.strip():
            votes[answer] += 1
            judged[answer].add(verdict)
    most = max(votes.values(), default=0)
    winners = [judged[answer] for answer, count in votes.items() if count == most]
    for opinions in winners:
        if {True, False} <= opinions:
            raise ValueError("majority: one answer is judged both right and wrong; give equal answers equal verdicts")
    return sum(True in opinions for opinions in winners) / len(winners) if winners else 0.0


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval (low, high) for a share of `n` independent yes-or-no trials; z = 1.96 for 95 %.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22. Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise ValueError(f"wilson: {successes} successes of {n} must fulfil 0 <= successes <= n and n >= 1")
    return _wilson(successes / n, n, z)


def mean_ci(per_problem_means: ArrayLike, z: float = 1.96) -> tuple[float, float, float]:
    """(mean, low, high) of a score in [0, 1], from each problem's mean over its samples; z = 1.96 for 95 %.

    The problems, not the samples, are the independent draws (clustered standard error), so more samples for each
    problem narrow the interval only as far as they steady each mean. Normal approximation, kept within [0, 1]; where
    all means are equal it would have no width, and Wilson's interval over the problems stands in. Raises ValueError
    for an empty list and for means outside [0, 1].
    """
    means = np.asarray(per_problem_means, dtype=np.float64)
    if means.ndim != 1 or not means.size or not np.all((means >= 0) & (means <= 1)):
        raise ValueError("mean_ci: needs a flat list of at least one problem's mean, each in [0, 1]")
    mean = float(means.mean())
    if np.ptp(means) == 0:
        return mean, *_wilson(mean, means.size, z)
    half = z * float(means.std(ddof=1)) / means.size**0.5
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _wilson(share: float, n: int, z: float) -> tuple[float, float]:
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # rounding must not shut it out
