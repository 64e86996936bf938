"""What was said of the chips and of the money behind them."""

from __future__ import annotations

from ziphius.cost.claims.claim import Claim, Evidence, Verdict, near
from ziphius.cost.claims.training import v3_run
from ziphius.cost.claims.working import Working


def fifty_thousand_hopper(evidence: Evidence) -> Claim:
    work = Working()
    rest = work(
        "The rest, which no article prints",
        "hopper - h800 - h100",
        "H20 GPUs",
        hopper=evidence["said_hopper"],
        h800=evidence["said_h800"],
        h100=evidence["said_h100"],
    )
    serving = work(
        "GPUs that DeepSeek says served at the peak of a day",
        "nodes * each",
        "GPUs",
        nodes=evidence["serving_peak_nodes"],
        each=evidence["gpus_per_node"],
    )
    shown = work(
        "GPUs that DeepSeek has shown", "training + serving", "GPUs", training=evidence["v3_gpus"], serving=serving
    )
    share = work("Beside the claim", "shown / said", "share", shown=shown, said=evidence["said_hopper"])
    settled = shown.value >= evidence["said_hopper"].value
    return Claim(
        "fifty-thousand-hopper",
        "50,000 Hopper chips",
        "press, articles 0 and 1, after SemiAnalysis (31 January 2025)",
        "DeepSeek has 50,000 Hopper chips: 10,000 H800, 10,000 H100, and the rest H20.",
        Verdict.HOLDS if settled else Verdict.UNKNOWN,
        f"It is an analyst's estimate; DeepSeek has disclosed no stock of chips, and the {rest} are what is left "
        f"after a subtraction. What it has shown in its papers is {shown} (training V3, and serving at the peak of "
        f"one day), {share} of the claim. That neither proves nor refutes it: a company need not show what it owns.",
        working=work,
    )


def one_point_six_billion(evidence: Evidence) -> Claim:
    work = Working()
    whole = evidence.bills["total"]
    parts = {
        name: evidence.estimated(getattr(whole, name).point, "$", f"{name} of {whole.count:,} GPUs")
        for name in ("chips", "servers", "network", "energy", "hosting")
    }
    count = work.note(
        "fleet_gpus", evidence.estimated(whole.count, "GPUs", "GPUs of the estimate, 10,000 A100s among them")
    )
    capex = work(
        "Servers",
        "chips + servers + network",
        "$",
        chips=parts["chips"],
        servers=parts["servers"],
        network=parts["network"],
    )
    opex = work("Operations, four years", "energy + hosting", "$", energy=parts["energy"], hosting=parts["hosting"])
    yearly = work("Both, a year", "(capex + opex) / 4", "$", capex=capex, opex=opex)
    hours = evidence.estimated(whole.hours, "GPU-hours", "hours of all GPUs in four years")
    hourly = work("Both, an hour of a GPU", "(capex + opex) / hours", "$/h", capex=capex, opex=opex, hours=hours)
    a100 = evidence.estimated(evidence.bills["a100"].capex.point, "$", "servers of the A100s")
    hopper = work("Servers of the Hopper GPUs alone", "capex - a100", "$", capex=capex, a100=a100)
    _, v3 = v3_run(evidence, work)
    share = work(
        "V3's final run beside servers and operations", "v3 / (capex + opex)", "share", v3=v3, capex=capex, opex=opex
    )
    holds = near(capex, evidence["said_servers"], 0.05) and near(opex, evidence["said_operations"], 0.05)
    for name in ("said_servers", "said_operations"):
        work.note(name, evidence[name])
    return Claim(
        "one-point-six-billion",
        "1.6 billion dollars of servers, 944 million to run them",
        "press, articles 0 and 1, after SemiAnalysis (31 January 2025)",
        "The true cost was 1.6 billion dollars for the servers and 944 million for their operation.",
        Verdict.ONLY_FOR if holds else Verdict.CONTRADICTED,
        f"The sums come out of their parts: {capex} and {opex}. But they are an estimate for {count}, not 50,000 (for "
        f"the Hopper chips alone the servers are {hopper}); the operations are those of four years; and the machines "
        "do all the work of DeepSeek and of its hedge fund, not one model. It is the price of the kitchen, and V3's "
        f"final run is one meal: {share} of it. A year of the fleet is {yearly}, an hour of one GPU {hourly}.",
        f"the estimate's whole fleet of {count}, A100s included, and four years of running it" if holds else "",
        work,
    )


def five_hundred_million(evidence: Evidence) -> Claim:
    work = Working()
    hopper = [evidence.bills[gpu] for gpu in ("h800", "h100", "h20")]
    chips = work(
        "Chips alone, at the estimate's prices",
        "h800 + h100 + h20",
        "$",
        **{
            bill.name: evidence.estimated(bill.chips.point, "$", f"{bill.count:,} {bill.name.upper()} chips")
            for bill in hopper
        },
    )
    said = work.note("said_invested", evidence["said_invested"])
    times = work("Beside the claim", "chips / said", "times", chips=chips, said=said)
    fits = "which fits the claim" if times.value > 1 else "which is less than the claim"
    return Claim(
        "five-hundred-million",
        "More than 500 million dollars invested",
        "press, articles 0 and 1, after SemiAnalysis",
        "DeepSeek has put more than 500 million dollars into chips.",
        Verdict.UNKNOWN,
        f"No account has been published. The 50,000 chips of the same estimate would be {chips}, {fits}; but then one "
        "estimate is held to another part of itself.",
        working=work,
    )


def salaries(evidence: Evidence) -> Claim:
    work = Working()
    _, v3 = v3_run(evidence, work)
    people = work(
        "Such salaries that V3's final run would pay for a year",
        "v3 / salary",
        "people",
        v3=v3,
        salary=evidence["said_salary"],
    )
    return Claim(
        "salaries",
        "Salaries above 1.3 million dollars",
        "press, article 1, after SemiAnalysis",
        "DeepSeek pays its best people more than 1.3 million dollars a year.",
        Verdict.UNKNOWN,
        f"No payroll has been published. It would matter: the money of V3's final run would pay {people} of this kind "
        "for one year. Salaries are in none of the sums on this page.",
        working=work,
    )


def wang_h100(evidence: Evidence) -> Claim:
    work = Working()
    wang = evidence["said_wang_h100"]
    bill = evidence.bills["h100"]
    placed = evidence.estimated(bill.capex.point / bill.count, "$", "an H100 with its share of server and network")
    work("What they would cost, ready to work", "gpus * placed", "$", gpus=wang, placed=placed)
    other = evidence["said_h100"]
    times = work("Beside the H100s of articles 0 and 1", "wang / other", "times", wang=wang, other=other)
    conflict = not near(wang, other, 0.1)
    return Claim(
        "fifty-thousand-h100",
        "50,000 H100 chips",
        "Alexandr Wang (Scale AI) on CNBC; press, article 3",
        "DeepSeek has about 50,000 H100s, a chip that may not be sold to China.",
        Verdict.CONTRADICTED if conflict else Verdict.UNKNOWN,
        f"The articles that count chips by type name {other} of this kind, beside two other types: the counts differ "
        f"{times}, so at most one is right. DeepSeek's own papers speak of H800s, the version made for export until "
        "October 2023. No evidence was given for 50,000 H100s; that there are none cannot be shown from outside.",
        working=work,
    )
