"""What was said of the cost of training V3 and R1."""

from __future__ import annotations

from ziphius.cost.claims.claim import Claim, Evidence, Verdict, near
from ziphius.cost.claims.working import Number, Working
from ziphius.cost.fleet import HOURS_PER_YEAR
from ziphius.cost.flops import train_flops_per_token
from ziphius.model.presets import preset


def v3_run(evidence: Evidence, work: Working) -> tuple[Number, Number]:
    """GPU-hours of V3's final run and their price at the rent that its report assumes."""
    hours = work(
        "GPU-hours of V3's final run",
        "pre + context + post",
        "GPU-hours",
        pre=evidence["v3_pretraining_hours"],
        context=evidence["v3_context_hours"],
        post=evidence["v3_post_training_hours"],
    )
    price = work(
        "At the rent that DeepSeek assumed", "hours * rent", "$", hours=hours, rent=evidence.rent("h800", "assumed")
    )
    return hours, price


def six_million(evidence: Evidence) -> Claim:
    work = Working()
    hours, price = v3_run(evidence, work)
    work("Days on the cluster", "hours / gpus / 24", "days", hours=hours, gpus=evidence["v3_gpus"])
    flops = Number(
        train_flops_per_token(preset("deepseek-v3"), seq_len=4096),
        "FLOPs",
        "arithmetic of one trained token",
        "ziphius.cost.flops on V3's published shape (causal, 4,096 tokens, without MTP)",
        "computed",
    )
    use = work(
        "Are the hours plausible? Share of the chips' peak they imply",
        "flops * tokens / (hours * 3600) / peak",
        "share",
        flops=flops,
        tokens=evidence["v3_tokens"],
        hours=evidence["v3_pretraining_hours"],
        peak=evidence.bf16_peak("h800"),
    )
    measured = work.note("v3_measured_mfu", evidence["v3_measured_mfu"])
    rent = evidence.rent("h800", "assumed")
    whole = work(
        "With R1 on top",
        "hours * rent + v3",
        "$",
        hours=evidence["r1_hours"],
        rent=evidence.rent("h800", "assumed"),
        v3=price,
    )
    owner = evidence.estimated(evidence.bills["h800"].dollars_per_gpu_hour().point, "$/h", "an H800-hour to its owner")
    cheap = work("The same hours at an owner's cost", "hours * cost", "$", hours=hours, cost=owner)
    dear = work(
        "The same hours at the market's rent", "hours * rent", "$", hours=hours, rent=evidence.rent("h800", "on demand")
    )
    said = work.note("said_training", evidence["said_training"])
    holds = near(price, said, 0.15)
    physics = "as much as DeepSeek measured" if near(use, measured, 0.1) else f"while DeepSeek measured {measured}"
    return Claim(
        "six-million",
        "The model cost 6 million dollars",
        "press, four of the five articles (0, 1, 2, 4)",
        "DeepSeek trained its model for about 6 million dollars, or less, on some 2,048 Nvidia H800 chips.",
        Verdict.ONLY_FOR if holds else Verdict.CONTRADICTED,
        f"DeepSeek's own table gives {hours} and multiplies them by {rent}, a rent that it calls an assumption: "
        f"{price}. The hours are believable: they use {use} of the chips' peak, {physics}. But this is the last run "
        "of V3 only. The report says itself that research, failed attempts and data are not in it; nor are salaries, "
        f"or the chips. R1, the model of the headlines, was made from V3 afterwards; with it the sum is {whole}. And "
        f"the dollars follow the rate: the same hours are {cheap} to an owner of the chips and {dear} at the rent of "
        "early 2025.",
        f"the final training run of V3 (not R1, no research, no data, no salaries), at an assumed rent of {rent}"
        if holds
        else "",
        work,
    )


def fifty_five_million(evidence: Evidence) -> Claim:
    work = Working()
    gpus = evidence["v3_gpus"]
    low = work("Price of a GPU, at least", "said / gpus", "$", said=evidence["said_cluster_low"], gpus=gpus)
    high = work("Price of a GPU, at most", "said / gpus", "$", said=evidence["said_cluster_high"], gpus=gpus)
    bill = evidence.bills["h800"]
    chip = work.note("h800_chip", evidence.estimated(bill.chips.point / bill.count, "$", "an H800 chip"))
    placed = evidence.estimated(bill.capex.point / bill.count, "$", "an H800 with its share of server and network")
    cluster = work("The same cluster, ready to work", "gpus * placed", "$", gpus=gpus, placed=placed)
    hours = sum(evidence[f"v3_{phase}_hours"].value for phase in ("pretraining", "context", "post_training"))
    run = Number(hours, "GPU-hours", "V3's final run", "DeepSeek-V3 technical report, table 1 (2024-12-27)")
    life = Number(
        HOURS_PER_YEAR * evidence.fleet.years, "hours", "hours of four years", "ziphius.cost.fleet", "computed"
    )
    share = work(
        "Share of the cluster's four years that V3 took", "run / (gpus * life)", "share", run=run, gpus=gpus, life=life
    )
    worn = work("So much of the cluster V3 used up", "cluster * share", "$", cluster=cluster, share=share)
    work.note("said_cluster_and_training", evidence["said_cluster_and_training"])
    bare = low.value <= chip.value <= high.value
    return Claim(
        "fifty-five-million",
        "55 million with the chips",
        "press, article 2",
        "The 2,048 chips cost 40 to 50 million dollars; with 5 million for the training the whole was about 55 "
        "million.",
        Verdict.ONLY_FOR if bare else Verdict.CONTRADICTED,
        f"That is {low} to {high} a GPU, the price of a bare chip ({chip} in the analysts' estimate). A chip does not "
        f"work without a server and a network: ready to work, the cluster is {cluster}. And the sum counts the chips "
        "twice, since the 5 million are a rent, and a rent pays for the chips already. One either rents, or buys and "
        f"uses up: V3 took {share} of the cluster's four years, {worn} of it.",
        "bare chips; the sum then adds their rent once more" if bare else "",
        work,
    )


def r1_294k(evidence: Evidence) -> Claim:
    work = Working()
    price = work(
        "R1-Zero, SFT data and R1",
        "hours * rent",
        "$",
        hours=evidence["r1_hours"],
        rent=evidence.rent("h800", "assumed"),
    )
    _, v3 = v3_run(evidence, work)
    share = work("Beside the model it starts from", "r1 / v3", "share", r1=price, v3=v3)
    said = work.note("said_r1", evidence["said_r1"])
    holds = near(price, said, 0.02)
    return Claim(
        "r1-294-thousand",
        "R1 cost 294 thousand dollars",
        "press, September 2025, after the paper in Nature",
        "The reasoning model that shook the markets cost only 294,000 dollars to train.",
        Verdict.ONLY_FOR if holds else Verdict.CONTRADICTED,
        f"The arithmetic is right: {price} at the same assumed rent. It is what was spent to make R1 out of V3, "
        f"{share} of what V3's final run had cost; without V3 there is nothing to start from. Smaller trials are not "
        "in it.",
        "the step from V3 to R1" if holds else "",
        work,
    )


def gpus_648(evidence: Evidence) -> Claim:
    work = Working()
    gpus = work("GPUs of R1-Zero", "nodes * each", "GPUs", nodes=evidence["r1_nodes"], each=evidence["gpus_per_node"])
    wall = evidence["r1_zero_wall_hours"]
    mine = work("GPU-hours on these", "gpus * hours", "GPU-hours", gpus=gpus, hours=wall)
    theirs = work("GPU-hours on 648", "gpus * hours", "GPU-hours", gpus=evidence["said_r1_gpus"], hours=wall)
    paper = work.note("r1_zero_hours", evidence["r1_zero_hours"])
    wrong = near(mine, paper, 0.02) and not near(theirs, paper, 0.02)
    return Claim(
        "648-chips",
        "R1 was trained on 648 chips",
        "press and an index, September 2025",
        "DeepSeek trained R1 on 648 H800 chips.",
        Verdict.CONTRADICTED if wrong else Verdict.HOLDS,
        f"A misprint of 64*8. The paper gives {paper} in {wall}: {gpus} make {mine}, 648 would make {theirs}.",
        working=work,
    )
