"""The one loop. Stages differ in the batches they bring and the loss they name, not here."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ziphius.cost.flops import train_flops_per_token
from ziphius.disk.errors import AGAIN
from ziphius.model.transformer import Transformer
from ziphius.train.balance import gates, load_violation, update_bias
from ziphius.train.batch import Batch
from ziphius.train.guard import Diverged, Guard
from ziphius.train.losses import LossParts
from ziphius.train.metrics import MetricLog, ProgressLine
from ziphius.train.optim import Optimizer
from ziphius.train.place import Place
from ziphius.train.resume import need_room, network_of, newest_state, what_rounds
from ziphius.train.settings import TrainSettings
from ziphius.train.speed import compiling_pays, set_speed
from ziphius.train.state import save_state
from ziphius.train.weights import ReplicatedWeights


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C); its state is saved."""


@dataclass
class StepData:
    """This rank's micro-batches of one step, in the processor's memory, and what their making had to report."""

    micro_batches: list[Batch]
    metrics: dict[str, float] = field(default_factory=dict)


class BatchSource(Protocol):
    """Makes the batches of each step; what a step brings may depend on `step` and its own state only."""

    def next_step(self, step: int) -> StepData: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


LossFunction = Callable[[Transformer, Batch, float], LossParts]


@dataclass
class TrainResult:
    """What a finished stage cost in work: steps, tokens and model FLOPs over all ranks, seconds of its steps.

    `earlier_seconds` are those among `seconds` that a run stopped before this one had worked and saved;
    `batch_seconds` those that went into making batches.
    """

    steps: int
    tokens: int
    seconds: float
    skipped: int
    model_flops: float
    gate: float | None
    earlier_seconds: float = 0.0
    batch_seconds: float = 0.0


@dataclass
class Progress:
    """Where the loop stands; all of it is part of the saved state."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    seconds: float = 0.0
    batch_seconds: float = 0.0
    flops: float = 0.0
    decay_from: int | None = None
    gate: float | None = None


class Trainer:
    """Runs `settings.steps` updates of `model` on the batches of `source`, resumable at every save to the same bits.

    `model` is on the device of `place`, which the batches are put on; the precision is that of the `settings`.

    `probe`, where given with `settings.gate_target`, measures the skill every `gate_every` steps; once it reaches the
    target a `wsd` schedule begins its decay and the stage ends after it, other schedules end at once. `watch` sees
    every step's row of metrics and returns what is to be said of it.
    """

    def __init__(
        self,
        model: Transformer,
        source: BatchSource,
        loss: LossFunction,
        settings: TrainSettings,
        folder: Path,
        *,
        place: Place | None = None,
        title: str = "train",
        probe: Callable[[], float] | None = None,
        watch: Callable[[dict[str, Any]], Sequence[str]] | None = None,
        peak_flops: float | None = None,
        dollars_per_hour: float = 0.0,
    ) -> None:
        self.model, self.source, self.loss, self.settings = model, source, loss, settings
        self.folder, self.title = folder, title
        self.place = (place or Place()).computing(settings.precision)
        self.probe, self.watch = probe, watch
        self.peak_flops, self.dollars_per_hour = peak_flops, dollars_per_hour
        self.weights = ReplicatedWeights(model, settings.precision == "bf16")
        self.optimizer = Optimizer(self.weights, settings.optimizer)
        compiled = compiling_pays(model, self.place) if settings.compile == "auto" else settings.compile
        set_speed(model, settings.recompute, compiled)
        self.progress = Progress()
        guessing = math.log(model.config.vocab_size) if settings.loss_is_entropy else None
        self.guard = Guard(settings.spike_factor, settings.max_skipped, guessing)
        self.gates = gates(model)
        self._saved: int | None = None  # the step of the last saved state
        self._asked = False  # this rank was told to stop
        self._stop = False  # all ranks know that one was, and stop after the same step
        self._flops_per_token: dict[int, float] = {}

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        """Train to the end. Raises Interrupted, with the state saved, when asked to stop.

        Raises Diverged where too many updates were left out, the loss exploded, or the trained weights are not finite;
        the state of the last save is kept, and going on from it with the same settings ends in the same place.
        """
        self._resume()
        log = MetricLog(self.folder, self.progress.step) if self.place.is_main else None
        line = ProgressLine(self.title, self.last_step, self.place.is_main)
        earlier = self.progress.seconds
        try:
            with self._listening():
                while self.progress.step < self.last_step:
                    row = self.step()
                    self._gate(row)
                    finished = self.progress.step >= self.last_step
                    if complaint := self._complaint(finished):
                        row["diverged"] = complaint
                    if log is not None:
                        for sentence in self.watch(row) if self.watch else ():
                            line.say(sentence)
                        log.write(row, self._then)
                    line.update(self.progress.step, self._note(row), self.last_step)
                    if complaint:
                        raise self._divergence(complaint, row["lr"])
                    if self._stop or finished or self.progress.step % self.settings.save_every == 0:
                        self._save()
                    if self._stop:
                        raise Interrupted(f"{self.title} stopped at step {self.progress.step}; its state is saved")
        finally:
            line.close()
            if log is not None:
                log.close(self._then)
        p = self.progress
        return TrainResult(p.step, p.tokens, p.seconds, p.skipped, p.flops, p.gate, earlier, p.batch_seconds)

    @property
    def last_step(self) -> int:
        """The step at which the stage ends as things stand."""
        p, s = self.progress, self.settings
        if p.decay_from is None:
            return s.steps
        return min(s.steps, p.decay_from + s.schedule.decay_steps(s.steps))

    def step(self) -> dict[str, Any]:
        """One update; returns the row of metrics."""
        began = time.perf_counter()
        p, s = self.progress, self.settings
        data = self.source.next_step(p.step)
        p.batch_seconds += time.perf_counter() - began
        counts = self.place.sum_numbers(
            {
                "weight": sum(b.norm for b in data.micro_batches),
                "tokens": sum(b.token_count for b in data.micro_batches),
                "trained": sum(float((b.weights > 0).sum()) for b in data.micro_batches),
                "stop": float(self._asked),
            }
        )
        self._stop = counts["stop"] > 0
        parts, loads = self._forward_backward(data.micro_batches, max(counts["weight"], 1e-9))
        grad = self.weights.total(self.place.sum_)
        sums, norm, violation = self._read(parts, self.weights.norm(grad), load_violation(loads))
        lr = s.optimizer.lr * s.schedule.factor(p.step, s.steps, p.decay_from)
        if not counts["trained"]:
            pass  # nothing to learn in this step, as when all answers of every group earned the same
        elif not self.guard.admits(norm, sums.get("loss", 0.0) / max(counts["weight"], 1e-9)):
            p.skipped += 1
        else:
            self.optimizer.step(grad.mul_(min(1.0, s.optimizer.clip / (norm + 1e-6))), lr)
            self._balance(loads)
        p.step += 1
        p.tokens += int(counts["tokens"])
        seconds = time.perf_counter() - began
        p.seconds += seconds
        flops = counts["tokens"] * self._flops(max((b.tokens.shape[1] for b in data.micro_batches), default=1))
        p.flops += flops
        row = {
            "step": p.step,
            "tokens": p.tokens,
            "seconds": p.seconds,
            "lr": lr,
            "grad_norm": norm,
            "skipped": p.skipped,
            "tokens_per_second": counts["tokens"] / seconds,
            "load_violation": violation,
            **_means(sums, counts["weight"]),
            **data.metrics,
        }
        if self.peak_flops:
            row["mfu"] = flops / seconds / self.peak_flops
        return row

    def _forward_backward(self, batches: list[Batch], norm: float) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of all micro-batches; this rank's logged sums; the experts' loads [gates, E] over all ranks."""
        self.weights.zero()
        sums: dict[str, Tensor] = {}
        experts = 0 if self.model.config.routing is None else self.model.config.routing.experts
        loads = torch.zeros(len(self.gates), experts, dtype=torch.int64, device=self.place.device)
        for batch in [self.place.put(batch) for batch in batches]:
            with self.place.autocast():
                parts = self.loss(self.model, batch, norm)
            parts.total.backward()
            self.weights.collect()
            for name, value in parts.sums.items():
                sums[name] = sums.get(name, 0.0) + value.double()
            if parts.loads:
                loads += torch.stack(parts.loads)
        return sums, self.place.sum_(loads)

    def _read(self, sums: dict[str, Tensor], *alike: Tensor) -> tuple[dict[str, float], float, float]:
        """`sums` added up over the ranks, and numbers that are `alike` on all: the only place where the host waits for
        what a step computed."""
        numbers = [number.double().view(1) for number in alike]
        if sums:
            numbers.insert(0, self.place.sum_(torch.stack(list(sums.values()))))
        *totals, norm, violation = torch.cat(numbers).tolist()
        return dict(zip(sums, totals, strict=True)), norm, violation

    def _complaint(self, finished: bool) -> str | None:
        """Why the stage must not go on, or must not end as if it were well: alike on every rank."""
        complaint = self.guard.complaint(finished)
        # The sum shows in one pass and without memory of its own whether there is something to count.
        if complaint is None and finished and not self.weights.master.sum().isfinite():
            bad = int((~self.weights.master.isfinite()).sum())
            if bad:
                complaint = f"{bad:,} of its {self.weights.master.numel():,} weights are not finite"
        return complaint

    def _divergence(self, complaint: str, lr: float) -> Diverged:
        s = self.settings
        precision = " or set train.precision to 'fp32'" if s.precision == "bf16" else ""
        kept = "" if self._saved is None else f"; the state of step {self._saved} is kept"
        return Diverged(
            f"{self.title} diverged by step {self.progress.step} of {self.last_step} at lr {lr:.3g}: {complaint}; "
            f"lower this stage's train.optimizer.lr from {s.optimizer.lr:g}{precision}{kept}"
        )

    def _balance(self, loads: Tensor) -> None:
        rule = self.model.config.routing
        if not self.settings.bias_update_speed or rule is None or not rule.selection_bias:
            return
        for gate, load in zip(self.gates, loads, strict=True):
            if not gate.weight.requires_grad:
                continue  # a frozen network's choices stay as they are
            update_bias(gate, load, self.settings.bias_update_speed, self.settings.bias_mean_centred)

    def _gate(self, row: dict[str, Any]) -> None:
        """Measure the skill when it is due, and begin the end of the stage when it suffices."""
        p, s = self.progress, self.settings
        if self.probe is None or p.step % s.gate_every or p.step >= s.steps:
            return
        p.gate = row["probe"] = self.probe()
        decaying = p.step > s.steps - s.schedule.decay_steps(s.steps)
        if s.gate_target is not None and p.gate >= s.gate_target and p.decay_from is None and not decaying:
            p.decay_from = p.step

    def _flops(self, length: int) -> float:
        if length not in self._flops_per_token:
            frozen = not all(weight.requires_grad for weight in self.model.parameters())
            count = train_flops_per_token(self.model.config, length, mtp=not frozen, frozen=frozen)
            self._flops_per_token[length] = count
        return self._flops_per_token[length]

    def _note(self, row: dict[str, Any]) -> str:
        parts = [f"loss {row['loss']:.3f}" if "loss" in row else ""]
        for key, text in (("reward", "reward {:.2f}"), ("probe", "probe {:.2f}")):
            if key in row:
                parts.append(text.format(row[key]))
        if row["skipped"]:
            parts.append(f"{row['skipped']} skipped")
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
        if "mfu" in row:
            parts.append(f"MFU {row['mfu']:.1%} of measured {self.settings.precision} GEMM peak")
        if self.dollars_per_hour:
            parts.append(f"${self.progress.seconds / 3600 * self.dollars_per_hour:.4f}")
        return "  ".join(part for part in parts if part)

    # --- stopping and going on ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "world_size": self.place.size,
            "made_by": what_rounds(self.place),
            "progress": vars(self.progress),
            "guard": self.guard.state_dict(),
            "master": self.weights.master,
            "optimizer": self.optimizer.state_dict(),
            "buffers": dict(self.model.named_buffers()),
            "source": self.source.state_dict(),
        }

    def _save(self) -> None:
        """Rank 0 writes: weights, moments and batch order are the same on every rank."""
        state = self.state_dict()
        self.place.on_main(lambda: save_state(self.folder / "state", state, network_of(self.weights), self._then))
        self._saved = self.progress.step

    @property
    def _then(self) -> str:
        """What to do after the mend of what stopped the stage now, and where that leads."""
        return f"{AGAIN}: it " + (f"goes on from step {self._saved}" if self._saved else "begins the stage anew")

    def _resume(self) -> None:
        state = newest_state(self.folder, self.weights, self.place, self.title)
        if state is not None:
            self.progress = Progress(**state["progress"])
            self._saved = self.progress.step
            self.guard.load_state_dict(state["guard"])
            self.weights.master.copy_(state["master"])
            self.weights.publish()
            self.optimizer.load_state_dict(state["optimizer"])
            for name, buffer in self.model.named_buffers():
                buffer.copy_(state["buffers"][name])
            self.source.load_state_dict(state["source"])
        need_room(self.folder, self.state_dict(), self.progress.step >= self.last_step, self.place, self.title)

    @contextmanager
    def _listening(self):
        """Turn SIGTERM and Ctrl-C into a save at the end of the step."""

        def ask(*_: object) -> None:
            self._asked = True

        old = {name: signal.signal(name, ask) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for name, handler in old.items():
                signal.signal(name, handler)


def _means(sums: dict[str, float], weight: float) -> dict[str, float]:
    """Sums to means: by the loss weight, or, where the loss counts response tokens in `on`, by that count.

    A step without response tokens has nothing to say of those, and leaves them out.
    """
    tokens = sums.pop("on", None)
    means = {}
    for name, value in sums.items():
        if tokens is None or name in ("loss", "mtp_loss"):
            means[name] = value / max(weight, 1e-9)
        elif tokens:
            means[name] = value / tokens
    return means
