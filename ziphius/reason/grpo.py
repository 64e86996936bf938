"""Group relative policy optimisation: DeepSeekMath (arXiv 2402.03300) as R1 used it, with what later work added."""

from __future__ import annotations

import copy
import time
from statistics import fmean, pstdev
from typing import Any

import torch

from ziphius.engine.engine import Engine
from ziphius.engine.settings import SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.reason.rollout import Group, Rollout, TaskMix, roll_out, rollout_engine
from ziphius.reason.settings import GRPOSettings
from ziphius.text.packing import pad_samples
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.batch import Batch, stack_rows
from ziphius.train.lora import LoRA
from ziphius.train.losses import batch_logprobs
from ziphius.train.place import Place
from ziphius.train.trainer import StepData

# Sizes of batches are kept at multiples of these: a CPU library compiles a kernel for each new shape.
_ROWS, _TOKENS = 8, 32


class GRPOSource:
    """Rolls out the live model and hands the loop its own answers with their advantages.

    It samples and weighs in the precision and on the device of `place`; its batches stay in the processor's memory.
    With `lora`, the updates that `model` is trained by, a merged copy samples, and the reference of a KL penalty is the
    network without them.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        tasks: TaskMix,
        settings: GRPOSettings,
        place: Place,
        *,
        seed: int,
        thinking: bool,
        lora: LoRA | None = None,
    ) -> None:
        self.model, self.tokenizer, self.tasks, self.settings = model, tokenizer, tasks, settings
        self.place, self.seed, self.thinking, self.lora = place, seed, thinking, lora
        self.anchored = settings.policy.kl_weight > 0
        copied = self.anchored and lora is None
        self.reference = copy.deepcopy(model).requires_grad_(False) if copied else None
        self._sampler = model if lora is None else lora.sampler()
        self._pending: list[list[Batch]] = []
        self._engine: Engine | None = None

    # --- BatchSource -------------------------------------------------------------------------------------------------

    def next_step(self, step: int) -> StepData:
        metrics: dict[str, float] = {}
        if not self._pending:
            began = time.perf_counter()
            groups = self._collect(step)
            metrics = self._report(groups)
            metrics["rollout_seconds"] = time.perf_counter() - began
            self._refresh_reference(step)
            self._pending = self._mini_batches(groups)
        return StepData(self._pending.pop(0), metrics)

    def state_dict(self) -> dict[str, Any]:
        pending = [[vars(batch) for batch in batches] for batches in self._pending]
        reference = None if self.reference is None else self.reference.state_dict()
        return {"pending": self.place.gather(pending), "reference": reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = [[Batch(**fields) for fields in batches] for batches in state["pending"][self.place.rank]]
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _collect(self, step: int) -> list[Group]:
        """This rank's groups: `prompts_per_step` over all ranks, with dynamic sampling as many as still wanted."""
        s = self.settings
        wanted = len(range(self.place.rank, s.prompts_per_step, self.place.size))
        rounds = s.max_rounds if s.dynamic_sampling else 1
        first = (step // s.mini_batches) * s.max_rounds * s.prompts_per_step
        kept: list[Group] = []
        spare: list[Group] = []
        for number in range(rounds):
            start = first + number * s.prompts_per_step + self.place.rank
            indices = range(start, first + (number + 1) * s.prompts_per_step, self.place.size)
            seed = hash_seed(self.seed, step, number, self.place.rank)
            groups = self._roll_out([self.tasks.problem("train", index) for index in indices], seed)
            for group in groups:
                (kept if group.is_mixed or not s.dynamic_sampling else spare).append(group)
            if len(kept) >= wanted:
                break
        return (kept + spare)[:wanted]

    def _roll_out(self, drawn: list, seed: int) -> list[Group]:
        s = self.settings
        sampling = SamplingSettings(temperature=s.temperature, max_new_tokens=s.max_new_tokens)
        with self.place.autocast():
            if self._engine is None:
                self._engine = rollout_engine(self._sampler, self.tokenizer)
            if self.lora is not None:
                self.lora.refresh(self._sampler)
            self._engine.weights_changed()
            return roll_out(
                self._engine,
                self.tokenizer,
                drawn,
                sampling,
                seed,
                samples=s.group_size,
                thinking=self.thinking,
                weights=s.rewards,
            )

    def _refresh_reference(self, step: int) -> None:
        every, before = self.settings.reference_refresh, step - self.settings.mini_batches
        if self.reference is not None and step and step // every > before // every:
            self.reference.load_state_dict(self.model.state_dict())

    # --- batches -----------------------------------------------------------------------------------------------------

    def _mini_batches(self, groups: list[Group]) -> list[list[Batch]]:
        """The groups split over the updates to come, each cut in micro-batches of rows of similar length."""
        count = self.settings.mini_batches
        result = [self._batches(groups[part::count]) for part in range(count)]
        if count > 1:  # the policy moves between the updates: remember where it was
            for batch in (batch for batches in result for batch in batches):
                batch.old_logprobs = self._logprobs(self.model, batch)
        return result

    def _batches(self, groups: list[Group]) -> list[Batch]:
        s = self.settings
        answers: list[tuple[list[int], Rollout, float]] = []
        decided = 0
        tokens = 0
        for group in groups:
            for rollout, advantage in zip(group.rollouts, advantages(group, s), strict=True):
                if advantage is None:
                    continue
                decided += 1
                tokens += len(rollout.completion.tokens)
                if advantage or self.anchored:  # without either it would add nothing
                    answers.append((group.prompt, rollout, advantage))
        normaliser = float(tokens if s.mean == "token" else decided)
        answers.sort(key=lambda item: len(item[0]) + len(item[1].completion.tokens))
        batches = []
        while answers:
            longest = len(answers[-1][0]) + len(answers[-1][1].completion.tokens)
            rows = max(_ROWS, s.micro_tokens // longest // _ROWS * _ROWS)
            batches.append(self._batch(answers[-rows:]))
            del answers[-rows:]
        if not batches:
            batches.append(self._nothing(groups))
        for batch in batches:
            batch.normaliser = normaliser / len(batches)
        return batches

    def _batch(self, answers: list[tuple[list[int], Rollout, float]]) -> Batch:
        samples = []
        for prompt, rollout, _ in answers:
            tokens = rollout.completion.tokens
            samples.append((prompt + tokens, [0.0] * len(prompt) + [self._token_weight(len(tokens))] * len(tokens)))
        filler = [([self.tokenizer.pad_id], [0.0])] * (-len(samples) % _ROWS)
        batch = stack_rows(pad_samples(samples + filler, self.tokenizer.pad_id, multiple=_TOKENS), masked=False)
        if filler and batch.valid is not None:
            batch.valid[len(answers) :] = False
        batch.advantages = torch.zeros_like(batch.weights)
        batch.sampler_logprobs = torch.zeros_like(batch.weights)
        for row, (prompt, rollout, advantage) in enumerate(answers):
            span = slice(len(prompt), len(prompt) + len(rollout.completion.tokens))
            batch.advantages[row, span] = advantage
            batch.sampler_logprobs[row, span] = torch.tensor(rollout.completion.logprobs)
        if self.anchored:
            batch.reference_logprobs = self._reference_logprobs(batch)
        return batch

    def _reference_logprobs(self, batch: Batch) -> torch.Tensor:
        if self.reference is not None:
            return self._logprobs(self.reference, batch)
        assert self.lora is not None
        with self.lora.off():
            return self._logprobs(self.model, batch)

    def _logprobs(self, model: Transformer, batch: Batch) -> torch.Tensor:
        with self.place.autocast():
            return batch_logprobs(model, self.place.put(batch), self.settings.temperature).cpu()

    def _token_weight(self, length: int) -> float:
        match self.settings.mean:
            case "sequence":
                return 1.0 / length
            case "token":
                return 1.0
        return 1.0 / self.settings.max_new_tokens

    def _nothing(self, groups: list[Group]) -> Batch:
        """A batch that weighs nothing, for a rank whose answers all earned the same."""
        prompt = groups[0].prompt if groups else [self.tokenizer.eos_id] * 8
        batch = stack_rows(pad_samples([(prompt, [0.0] * len(prompt))], self.tokenizer.pad_id), masked=False)
        batch.valid = torch.zeros_like(batch.tokens, dtype=torch.bool)
        batch.advantages = torch.zeros_like(batch.weights)
        batch.sampler_logprobs = torch.zeros_like(batch.weights)
        if self.anchored:
            batch.reference_logprobs = torch.zeros_like(batch.weights)
        return batch

    # --- metrics -----------------------------------------------------------------------------------------------------

    def _report(self, groups: list[Group]) -> dict[str, float]:
        """Means over all ranks' answers, an undecided one being not right; the reward is over the decided ones only."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths = [len(r.completion.tokens) for r in rollouts]
        decided = [r.reward for r in rollouts if r.reward.total is not None]
        sums = self.place.sum_numbers(
            {
                "rollouts": len(rollouts),
                "decided": len(decided),
                "groups": len(groups),
                "reward": sum(r.total or 0.0 for r in decided),
                "reward_accuracy": sum(r.accuracy or 0.0 for r in decided),
                "reward_format": sum(r.reward.format for r in rollouts),
                "reward_language": sum(r.reward.language for r in rollouts),
                "reward_std": sum(pstdev(g.totals) if len(g.totals) > 1 else 0.0 for g in groups),
                "groups_mixed": sum(g.is_mixed for g in groups),
                "response_length": sum(lengths),
                "truncated": sum(not r.completion.finished for r in rollouts),
            }
        )
        count, decided_count = max(sums["rollouts"], 1), max(sums["decided"], 1)
        report = {"reward": sums["reward"] / decided_count}
        for key in ("reward_accuracy", "reward_format", "reward_language", "response_length", "truncated"):
            report[key] = sums[key] / count
        for key in ("reward_std", "groups_mixed"):
            report[key] = sums[key] / max(sums["groups"], 1)
        report["undecided"] = 1 - sums["decided"] / count
        report["rollout_tokens"] = sums["response_length"]
        report["response_length_max"] = float(max(self.place.gather(max(lengths, default=0))))
        return report


def advantages(group: Group, settings: GRPOSettings) -> list[float | None]:
    """Advantage of each answer of a group, None where it is left out of the loss (undecided, or masked as overlong).

    (r − mean) / deviation, or r − mean without `normalise` (DeepSeekMath equation 3; Dr. GRPO).
    """
    rewards = [_reward(rollout, settings) for rollout in group.rollouts]
    known = [reward for reward in rewards if reward is not None]
    if not known:
        return [None] * len(rewards)
    mean, deviation = fmean(known), pstdev(known)
    scale = deviation + 1e-6 if settings.normalise else 1.0
    return [None if r is None else (0.0 if deviation == 0 else (r - mean) / scale) for r in rewards]


def _reward(rollout: Rollout, settings: GRPOSettings) -> float | None:
    total = rollout.reward.total
    if total is None or (settings.overlong == "mask" and not rollout.completion.finished):
        return None
    if settings.overlong == "soft":
        spare = settings.max_new_tokens - len(rollout.completion.tokens)
        total -= max(0.0, 1.0 - spare / settings.overlong_margin)
    return total


def hash_seed(*parts: int) -> int:
    """One seed from several numbers, well mixed (splitmix64 over the parts)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
