"""What can be wrong with a stage of training: one check an illness.

The thresholds are judgement, tried on toy policies made ill on purpose (tests/reason/test_doctor.py); they are meant to
stay silent on a run that learns. A gauge is judged over a window of readings, never by a single step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import fmean, median, pstdev

from ziphius.reason.advice import (
    BETTER_BASE,
    FULL_PRECISION,
    HOLD,
    LONGER_WARM_UP,
    LOWER_LR,
    MORE_SFT,
    higher,
    lower,
    put,
)
from ziphius.reason.chart import WINDOW, Chart, Finding

PATIENCE = 24  # readings until something that was low must have risen
FEW_MIXED, NONE_MIXED = 0.1, 0.02  # shares of groups with anything to learn from
ALL_RIGHT, ALL_WRONG = 0.9, 0.1  # accuracies
AT_CHANCE = 1.5  # factor on the accuracy of guessing
FORMAT_LOW, FORMAT_RISE = 0.5, 0.05  # shares
TRUNCATED, TRUNCATED_ILL = 0.25, 0.5  # shares of answers cut off
LENGTH_GROWN, LENGTH_SHRUNK = 1.5, 0.5  # factors on the length at the beginning
FALL, BROKEN = 0.05, 0.2  # losses of accuracy, counted only beyond three standard errors
ENTROPY_LOW, ENTROPY_ILL, ENTROPY_SHRUNK = 0.05, 0.02, 0.2  # nats per token, nats per token, factor
ENTROPY_GROWN, ENTROPY_RISE, ENTROPY_RISE_ILL = 2.0, 0.5, 1.5  # factor, nats per token, nats per token
UNLEARNED = 0.5  # accuracy below which a policy should still be exploring
UNDECIDED, UNDECIDED_ILL = 0.02, 0.2  # shares of answers
VIOLATION_GROWN, VIOLATION_RISE, VIOLATION_ILL = 1.5, 0.5, 0.8  # factor, rise, share of the worst possible
MISMATCH, MISMATCH_ILL = 0.05, 0.2  # nats per token
MISMATCH_GROWN, MISMATCH_NOTED = 3.0, 0.02  # factor, nats per token
CLIPPED, CLIPPED_ILL = 0.1, 0.3  # shares of tokens
KL, KL_ILL = 0.3, 1.0  # nats per token
SKIPPED, SKIPPED_ILL = 2, WINDOW // 2  # updates left out within a window
SKIPPED_SHARE, SKIPPED_SHARE_ILL = 0.1, 0.2  # shares of all updates left out
LOSS_WINDOW = 2 * WINDOW  # losses that make one judgement: they vary with the text
LOSS_ROSE, LOSS_ROSE_ILL, LOSS_FACTOR = 0.5, 1.5, 1.5  # nats, nats, factor on the first loss


# --- is there anything to learn from? ---------------------------------------------------------------------------------


def _groups(chart: Chart) -> Iterator[Finding]:
    mixed, accuracy, undecided = map(chart.now, ("groups_mixed", "reward_accuracy", "undecided"))
    if mixed is None or accuracy is None or mixed >= FEW_MIXED or (undecided or 0.0) > UNDECIDED_ILL:
        return  # a checker that fails leaves the groups empty: that is its finding, not this one
    seen = f"Only {mixed:.0%} of the groups had answers of different reward, so hardly anything was learned;"
    if accuracy >= ALL_RIGHT:
        yield chart.finding(
            "groups all right", False, f"{seen} {accuracy:.0%} of the answers were right.",
            "The problems are too easy by now: end the stage, or give it harder ones, or set dynamic_sampling.",
            put("grpo.dynamic_sampling", True),
        )  # fmt: skip
    elif accuracy <= ALL_WRONG:
        yield chart.finding(
            "groups all wrong", mixed < NONE_MIXED, f"{seen} {accuracy:.0%} of the answers were right.",
            "The problems are too hard or the cold start is too weak: train the SFT stage for more epochs, pretraining "
            "to a higher gate_target, take easier problems, or raise group_size.",
            MORE_SFT, BETTER_BASE, higher("grpo.group_size"),
        )  # fmt: skip
    else:
        yield chart.finding(
            "groups all alike", mixed < NONE_MIXED, f"{seen} {accuracy:.0%} of the answers were right.",
            "Each problem gets the same answer every time: raise temperature or group_size, or set dynamic_sampling.",
            higher("grpo.temperature"), higher("grpo.group_size"), put("grpo.dynamic_sampling", True),
        )  # fmt: skip


def _format(chart: Chart) -> Iterator[Finding]:
    values, now = chart.gauges.get("reward_format", []), chart.now("reward_format")
    if now is None or now >= FORMAT_LOW:
        return
    never = not any(values)
    rise = now - fmean(values[:WINDOW])
    if never or (len(values) >= PATIENCE and rise < FORMAT_RISE):
        yield chart.finding(
            "format not learned", never,
            f"{now:.0%} of the answers had the asked-for form, {rise:+.0%} since the beginning.",
            "Teach the form first with more epochs of SFT, raise max_new_tokens where the whole answer has no room, or "
            "raise the reward's weight format.",
            MORE_SFT, higher("grpo.max_new_tokens"), higher("grpo.rewards.format", start=1.0),
        )  # fmt: skip


def _verifier(chart: Chart) -> Iterator[Finding]:
    share = chart.now("undecided")
    if share is not None and share > UNDECIDED:
        yield chart.finding(
            "verifier failing", share > UNDECIDED_ILL,
            f"The checker could not judge {share:.0%} of the answers: it ran out of time or memory, or crashed.",
            "These answers are left out of the loss: lower max_new_tokens, allow a check more time in the settings of "
            "the task, or mend the checker where it is your own.",
            lower("grpo.max_new_tokens"),
        )  # fmt: skip


# --- how long are the answers? ----------------------------------------------------------------------------------------


def _truncation(chart: Chart) -> Iterator[Finding]:
    share, length = chart.now("truncated"), chart.change("response_length")
    if share is None or share <= TRUNCATED:
        return
    cut = f"{share:.0%} of the answers were cut off by the limit"
    if length and length[1] > LENGTH_GROWN * length[0]:
        yield chart.finding(
            "length exploding", share > TRUNCATED_ILL,
            f"Answers grew from {length[0]:.0f} to {length[1]:.0f} tokens and {cut}.",
            "Set overlong to 'soft', or raise max_new_tokens if the longer thinking pays.",
            put("grpo.overlong", "soft"), higher("grpo.max_new_tokens"),
        )  # fmt: skip
    else:
        yield chart.finding(
            "answers cut off", share > TRUNCATED_ILL, f"{cut}.",
            "Raise max_new_tokens, set overlong to 'mask', or teach an end to the answer with more epochs of SFT.",
            higher("grpo.max_new_tokens"), put("grpo.overlong", "mask"), MORE_SFT,
        )  # fmt: skip


def _guessing(chart: Chart) -> Iterator[Finding]:
    """Any frequent answer attracts a policy that cannot do the task: it stops thinking, or stays where it is."""
    accuracies, lengths = chart.gauges.get("reward_accuracy", []), chart.gauges.get("response_length", [])
    accuracy, length, mixed = map(chart.now, ("reward_accuracy", "response_length", "groups_mixed"))
    if accuracy is None or length is None:
        return
    begun = fmean(accuracies[:WINDOW])
    guessing = accuracy <= AT_CHANCE * chart.context.guess and accuracy - begun < FALL
    if length < LENGTH_SHRUNK * max(lengths) and (guessing or begun - accuracy > FALL):
        yield chart.finding(
            "length collapsing", True,
            f"Answers shrank from {max(lengths):.0f} to {length:.0f} tokens while accuracy went from {begun:.0%} to "
            f"{accuracy:.0%}: the policy guesses a frequent answer without thinking.",
            "Train the base to a higher gate_target, take problems whose answers are evenly spread, lower lr, or hold "
            "the policy with policy.kl_weight.",
            BETTER_BASE, LOWER_LR, HOLD,
        )  # fmt: skip
    elif guessing and len(accuracies) >= PATIENCE and (mixed or 0.0) >= FEW_MIXED:
        yield chart.finding(
            "accuracy at chance", False,
            f"After {len(accuracies)} steps with rollouts {accuracy:.0%} of the answers are right, no more than by "
            "guessing.",
            "The cold start is too weak: train the SFT stage for more epochs (greedy answers should be right half the "
            "time) or pretraining to a higher gate_target, or take easier problems.",
            MORE_SFT, BETTER_BASE,
        )  # fmt: skip


# --- does the policy stay in shape? -----------------------------------------------------------------------------------


def _entropy(chart: Chart) -> Iterator[Finding]:
    now, accuracy, change = chart.now("entropy"), chart.now("reward_accuracy"), chart.change("entropy")
    if now is None:
        return
    fell = change is not None and change[1] < ENTROPY_SHRUNK * change[0]
    if accuracy is not None and accuracy < UNLEARNED and (now < ENTROPY_ILL or (now < ENTROPY_LOW and fell)):
        yield chart.finding(
            "entropy collapsed", now < ENTROPY_ILL,
            f"The policy is sure of every token ({now:.3f} nats) though only {accuracy:.0%} of its answers are right.",
            "Lower lr, raise policy.clip_high or temperature, or go back to the cold start with policy.kl_weight set.",
            LOWER_LR, higher("grpo.policy.clip_high"), higher("grpo.temperature"), HOLD,
        )  # fmt: skip
    if change and change[1] > ENTROPY_GROWN * change[0] and change[1] - change[0] > ENTROPY_RISE:
        yield chart.finding(
            "entropy exploding", change[1] - change[0] > ENTROPY_RISE_ILL,
            f"Entropy rose from {change[0]:.2f} to {change[1]:.2f} nats per token: the policy turns to noise.",
            "Lower lr, lower policy.clip_high, or hold the policy with policy.kl_weight.",
            LOWER_LR, lower("grpo.policy.clip_high"), HOLD,
        )  # fmt: skip


def _decline(chart: Chart) -> Iterator[Finding]:
    """From the window of the best accuracy to now: the accuracy fell, beyond its noise."""
    rewards, accuracies = chart.gauges.get("reward", []), chart.gauges.get("reward_accuracy", [])
    if len(accuracies) < 2 * WINDOW:
        return
    ends = range(WINDOW, len(accuracies) - WINDOW + 1)
    best = max(ends, key=lambda end: sum(accuracies[end - WINDOW : end]))
    then, now = chart.window("reward_accuracy", best), chart.window("reward_accuracy")
    fall = fmean(then) - fmean(now)
    rise = fmean(rewards[-WINDOW:]) - fmean(rewards[best - WINDOW : best])
    if fall <= max(FALL, 3 * math.hypot(pstdev(then), pstdev(now)) / WINDOW**0.5):
        return
    fell = f"accuracy fell from {fmean(then):.0%} to {fmean(now):.0%}"
    if rise > 0:
        yield chart.finding(
            "format hacking", True,
            f"The reward rose by {rise:.2f} while {fell}: the policy is paid for something other than right answers.",
            "Lower the reward's weights format and language against accuracy, and leave partial_credit off.",
            lower("grpo.rewards.format"), lower("grpo.rewards.language"), put("grpo.rewards.partial_credit", False),
        )  # fmt: skip
    else:
        yield chart.finding(
            "policy breaking", fall > BROKEN, f"The {fell}.",
            "Lower lr, hold the policy with policy.kl_weight, and go back to a checkpoint from before.",
            LOWER_LR, HOLD,
        )  # fmt: skip


def _far_from_reference(chart: Chart) -> Iterator[Finding]:
    values = chart.window("kl")
    if values and (kl := median(values)) > KL:  # the estimator has a heavy tail: its mean may be one token's
        yield chart.finding(
            "policy far from reference", kl > KL_ILL, f"KL to the reference is {kl:.2f} nats per token.",
            "Raise policy.kl_weight, lower lr, or move the reference more often with a lower reference_refresh.",
            HOLD, LOWER_LR, lower("grpo.reference_refresh"),
        )  # fmt: skip


# --- do the updates do what they should? ------------------------------------------------------------------------------


def _mismatch(chart: Chart) -> Iterator[Finding]:
    now, change = chart.now("mismatch"), chart.change("mismatch")
    if now is None:
        return
    grew = change is not None and change[1] > MISMATCH_GROWN * change[0] and now > MISMATCH_NOTED
    if now > MISMATCH or grew:
        since = f", from {change[0]:.3f} at the beginning" if change else ""
        yield chart.finding(
            "sampler and trainer differ", now > MISMATCH_ILL,
            f"They give the same token log-probabilities {now:.3f} nats apart{since}.",
            "Set precision to 'fp32' and keep policy.importance_cap at 2.",
            FULL_PRECISION, put("grpo.policy.importance_cap", 2.0),
        )  # fmt: skip


def _clipping(chart: Chart) -> Iterator[Finding]:
    share = chart.now("clipped")
    if share is not None and share > CLIPPED:
        yield chart.finding(
            "updates clipped", share > CLIPPED_ILL, f"{share:.0%} of the tokens left the range of the ratio.",
            "Lower lr or mini_batches, or widen the range with a higher policy.clip_high.",
            LOWER_LR, lower("grpo.mini_batches"), higher("grpo.policy.clip_high"),
        )  # fmt: skip


def _skipping(chart: Chart) -> Iterator[Finding]:
    """Updates left out now, or too large a share of all that the stage has tried."""
    recent = chart.rows[-WINDOW:]
    counts = [0, *(int(row.get("skipped", 0)) for row in chart.rows)]
    skipped = counts[-1] - counts[-WINDOW - 1 :][0]
    share = counts[-1] / max(len(chart.rows), WINDOW)
    gauges = [row[key] for row in recent for key in ("loss", "grad_norm") if key in row]
    broken = any(value is None or not math.isfinite(value) for value in gauges)  # null is how a file keeps a NaN
    if skipped >= SKIPPED or broken or share > SKIPPED_SHARE:
        why = "their loss or gradient was not a number" if broken else "their gradient was a spike"
        lately = f"{skipped} of the last {len(recent)} updates were left out because {why}"
        yield chart.finding(
            "updates skipped", skipped >= SKIPPED_ILL or share > SKIPPED_SHARE_ILL,
            f"{lately}, {counts[-1]} of all {len(chart.rows)}." if skipped or broken
            else f"{counts[-1]} of all {len(chart.rows)} updates were left out.",
            "Lower lr or clip, lengthen warmup_steps, or set precision to 'fp32'; go back to the last saved state if "
            "it does not end.",
            LOWER_LR, lower("train.optimizer.clip"), LONGER_WARM_UP, FULL_PRECISION,
        )  # fmt: skip


def _loss_rising(chart: Chart) -> Iterator[Finding]:
    """Reading and imitating: the loss exploded at once, or rose from the best it has been, beyond its noise."""
    losses = chart.gauges.get("loss", [])
    now = chart.now("loss")
    if now is None:
        return
    best, noise = losses[0], (LOSS_FACTOR - 1) * losses[0]
    if len(losses) >= 2 * LOSS_WINDOW:
        windows = [losses[end - LOSS_WINDOW : end] for end in range(LOSS_WINDOW, len(losses) + 1)]
        lowest = min(windows, key=fmean)
        now = fmean(windows[-1])
        if fmean(lowest) < best:
            best, noise = fmean(lowest), 4 * math.hypot(pstdev(lowest), pstdev(windows[-1])) / LOSS_WINDOW**0.5
    if now - best > max(LOSS_ROSE, noise):
        yield chart.finding(
            "loss rising", now - best > LOSS_ROSE_ILL, f"The loss rose from {best:.2f} to {now:.2f} nats a token.",
            "Lower lr, lengthen warmup_steps, and go back to a checkpoint from before.",
            LOWER_LR, LONGER_WARM_UP,
        )  # fmt: skip


def stopped_as_diverged(chart: Chart) -> Iterator[Finding]:
    """The trainer ended the stage, which it writes into the last row: ill, whatever the gauges look like."""
    if chart.rows and (complaint := chart.rows[-1].get("diverged")):
        yield chart.finding(
            "training diverged", True, f"The stage was stopped: {complaint}.",
            "Lower lr, lengthen warmup_steps, or set precision to 'fp32'.",
            LOWER_LR, LONGER_WARM_UP, FULL_PRECISION,
        )  # fmt: skip


def _routing(chart: Chart) -> Iterator[Finding]:
    values, change, worst = (
        chart.window("load_violation"),
        chart.change("load_violation"),
        chart.context.worst_violation,
    )
    if not values:
        return
    now = median(values)  # biases that overshoot swing between even steps and uneven ones
    high = worst is not None and now > VIOLATION_ILL * worst
    rose = change and change[1] > VIOLATION_GROWN * change[0] and change[1] - change[0] > VIOLATION_RISE
    if high or rose:
        since = f", {change[0] + 1:.1f} times at the beginning" if change else ""
        yield chart.finding(
            "routers drifting", high, f"The busiest expert gets {now + 1:.1f} times its share{since}.",
            "Bring bias_update_speed nearer to 0.001 (0 lets the routers drift), raise balance_weight, or lower lr.",
            put("train.bias_update_speed", 0.001), higher("loss.balance_weight", start=1e-4), LOWER_LR,
        )  # fmt: skip


Check = Callable[[Chart], Iterator[Finding]]

LEARNING_CHECKS: tuple[Check, ...] = (_skipping, _loss_rising)  # of stages that read or imitate

CHECKS: tuple[Check, ...] = (  # of reinforcement learning
    _verifier,
    _groups,
    _format,
    _truncation,
    _guessing,
    _entropy,
    _decline,
    _far_from_reference,
    _mismatch,
    _clipping,
    _skipping,
    _routing,
)
