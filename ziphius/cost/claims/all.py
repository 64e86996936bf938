"""All claims, in the order in which the quarrel went."""

from __future__ import annotations

from ziphius.cost.claims import machines, prices, training
from ziphius.cost.claims.claim import Claim, Evidence


def all_claims(evidence: Evidence) -> list[Claim]:
    """Each claim held to the evidence."""
    found = [
        training.six_million,
        machines.one_point_six_billion,
        machines.fifty_thousand_hopper,
        machines.wang_h100,
        machines.five_hundred_million,
        machines.salaries,
        training.fifty_five_million,
        prices.three_percent,
        prices.fifty_times,
        prices.markets,
        training.r1_294k,
        training.gpus_648,
        prices.margin,
    ]
    return [claim(evidence) for claim in found]


def answer(evidence: Evidence) -> str:
    """The question of the press, 6 million or 1.6 billion, in a few sentences."""
    work = training.Working()
    _, run = training.v3_run(evidence, work)
    whole = evidence.bills["total"]
    capex = evidence.estimated(whole.capex.point, "$", "servers")
    times = work("How far apart", "capex / run", "times", capex=capex, run=run)
    return (
        "Did DeepSeek's model cost 6 million dollars or 1.6 billion? Both numbers can be computed, and they answer "
        f"different questions. {run} is the rent of the GPUs for one training run of V3, at a rate that DeepSeek "
        f"assumed. {capex} is an analyst's estimate of all the machines that DeepSeek and its hedge fund own, for "
        f"every job they do. The second is {times} the first, as a factory is to the cost of running it for the hours "
        "that one product takes."
    )
