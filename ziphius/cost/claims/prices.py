"""What was said of prices, of efficiency and of the markets."""

from __future__ import annotations

from ziphius.cost.claims.claim import Claim, Evidence, Verdict, near
from ziphius.cost.claims.working import Number, Working
from ziphius.cost.flops import train_flops_per_token
from ziphius.model.presets import preset


def _day(evidence: Evidence, work: Working, model: str, label: str) -> Number:
    """What the tokens of DeepSeek's published day cost at the list price of `model`."""
    hit, miss, output = (evidence.price(model, part) for part in ("hit", "miss", "output"))
    return work(
        label,
        "(cached * hit + (input - cached) * miss + answers * output) / 1e6",
        "$",
        cached=evidence["serving_hit_tokens"],
        hit=hit,
        input=evidence["serving_input_tokens"],
        miss=miss,
        answers=evidence["serving_output_tokens"],
        output=output,
    )


def three_percent(evidence: Evidence) -> Claim:
    work = Working()
    shares = {}
    for part, label in (("miss", "Input"), ("output", "Output"), ("hit", "Input that a cache holds")):
        r1, o1 = evidence.price("deepseek-r1", part), evidence.price("o1", part)
        shares[part] = work(f"{label}: R1 beside o1", "r1 / o1", "share", r1=r1, o1=o1)
    r1_day = _day(evidence, work, "deepseek-r1", "DeepSeek's published day at R1's prices")
    o1_day = _day(evidence, work, "o1", "The same tokens at o1's prices")
    mix = work("On that day's mix of work", "r1 / o1", "share", r1=r1_day, o1=o1_day)
    said = work.note("said_price_share", evidence["said_price_share"])
    right = near(mix, said, 0.17)
    listed = near(shares["miss"], said, 0.17) and near(shares["output"], said, 0.17)
    verdict = Verdict.HOLDS if listed else Verdict.ONLY_FOR if right else Verdict.CONTRADICTED
    return Claim(
        "three-percent",
        "At 3% of OpenAI's price",
        "press, article 4",
        "DeepSeek sells its model at 3% of what OpenAI asks.",
        verdict,
        f"By the price lists of January 2025, R1 cost {shares['miss']} of o1 for input and {shares['output']} for "
        f"output, nearer 4% than 3%; for input that a cache holds, {shares['hit']}. For the mix of work that DeepSeek "
        f"published a month later it is {mix}. A price is what a seller asks; it is not a cost.",
        f"work with many repeated inputs; by the plain price list it is {shares['miss']}"
        if verdict is Verdict.ONLY_FOR
        else "",
        work,
    )


def fifty_times(evidence: Evidence) -> Claim:
    work = Working()
    found = []
    for part, label in (("output", "Price of output, o1 beside R1"), ("hit", "Price of input from the cache")):
        o1, r1 = evidence.price("o1", part), evidence.price("deepseek-r1", part)
        found.append(work(label, "o1 / r1", "times", o1=o1, r1=r1))
    hours = work(
        "GPU-hours, Llama 3.1 405B beside V3",
        "llama / (pre + context + post)",
        "times",
        llama=evidence["llama_405b_hours"],
        pre=evidence["v3_pretraining_hours"],
        context=evidence["v3_context_hours"],
        post=evidence["v3_post_training_hours"],
    )
    flops = _flops(evidence, work)
    said = work.note("said_efficiency", evidence["said_efficiency"])
    measured = any(number.value >= said.value for number in (hours, flops))
    return Claim(
        "fifty-times",
        "50 times more efficient",
        "press, article 4",
        "DeepSeek's model is 50 times more efficient than its rivals.",
        Verdict.HOLDS if measured else Verdict.UNKNOWN,
        "Nobody has published a measurement behind this number, nor said what it measures. Against the largest open "
        f"rival of the time V3 took {hours} fewer GPU-hours and {flops} less arithmetic a token. The prices of o1 "
        f"were {found[0]} those of R1 for output and {found[1]} for input from the cache: only there is a 50, and it "
        "is a price. What o1 costs OpenAI is not known.",
        working=work,
    )


def _flops(evidence: Evidence, work: Working) -> Number:
    v3 = Number(
        train_flops_per_token(preset("deepseek-v3"), seq_len=4096),
        "FLOPs/token",
        "V3",
        "ziphius.cost.flops on V3's published shape (causal, 4,096 tokens, without MTP)",
        "computed",
    )
    return work(
        "Arithmetic of a trained token", "llama / v3", "times", llama=evidence["llama_405b_flops_per_token"], v3=v3
    )


def margin(evidence: Evidence) -> Claim:
    work = Working()
    cost = work(
        "Cost of the day",
        "nodes * each * 24 * rent",
        "$",
        nodes=evidence["serving_mean_nodes"],
        each=evidence["gpus_per_node"],
        rent=evidence.rent("h800", "assumed"),
    )
    income = _day(evidence, work, "deepseek-r1", "All its tokens at R1's prices")
    share = work("Profit over cost", "(income - cost) / cost", "share", income=income, cost=cost)
    cost_in, cost_out = token_costs(evidence, work)
    said, stated = evidence["said_margin"], work.note("serving_cost_per_day", evidence["serving_cost_per_day"])
    work.note("said_margin", said)
    holds = near(share, said, 0.02) and near(cost, stated, 0.01)
    return Claim(
        "margin-545",
        "A profit of 545%",
        "DeepSeek itself (1 March 2025) and the press after it",
        "DeepSeek earns 545% on the cost of serving its models.",
        Verdict.ONLY_FOR if holds else Verdict.CONTRADICTED,
        f"The numbers of that day agree, but for their rounding: {cost} of rented GPUs, {income} of income. But the "
        "income is a thought: it bills every token at R1's full price, while many were free (the app and the site), "
        f"cheaper (V3) or sold at night at a discount. DeepSeek says so itself. A million tokens cost {cost_in} to "
        f"read and {cost_out} to write.",
        "a day on which every token is billed at R1's full price" if holds else "",
        work,
    )


def token_costs(evidence: Evidence, work: Working) -> tuple[Number, Number]:
    """Dollars per million tokens of input and of output at the assumed rent (means over the day)."""
    rent, each = evidence.rent("h800", "assumed"), evidence["gpus_per_node"]
    expression = "rent * each / (rate * 3600) * 1e6"
    read = work("A million tokens of input cost", expression, "$", rent=rent, each=each, rate=evidence["prefill_rate"])
    write = work("A million tokens of output cost", expression, "$", rent=rent, each=each, rate=evidence["decode_rate"])
    return read, write


def markets(evidence: Evidence) -> Claim:
    return Claim(
        "markets",
        "The markets fell, and China plans a trillion yuan",
        "press, articles 2 and 4",
        "Nvidia lost 13 or 14%, ASML 10% before the opening; a plan of 1,000 billion yuan was announced.",
        Verdict.UNKNOWN,
        "These are quotes before the opening of a stock exchange and the announcement of a plan. Nothing in them can "
        "be computed from what a model costs, and no number on this page depends on them.",
    )
