"""What is served: requests, and the model on its devices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date as Date

from ziphius.cost.data import Data
from ziphius.cost.decode import Pool, Serving
from ziphius.cost.machine import BYTES, SUSTAINED, Machine
from ziphius.cost.rows import Accelerator
from ziphius.cost.shape import Shape


@dataclass(frozen=True)
class Workload:
    """Requests of `input` tokens, of which the share `hit` is cached, and `output` tokens written.

    `context` is the mean number of tokens attended to while writing. `user_speed`: tokens per second that a user must
    get at least. Demand is `requests_per_second`, the mean over the day. `concurrency` fixes how many requests a
    decoding pool works on at once; else it takes as many as memory and the user's speed allow.
    """

    input: float
    output: float
    hit: float = 0.0
    context: float | None = None
    user_speed: float = 20.0
    first_token_seconds: float | None = None
    requests_per_second: float | None = None
    concurrency: float | None = None

    @property
    def mean_context(self) -> float:
        return self.context if self.context is not None else self.input + self.output / 2


@dataclass(frozen=True)
class ServeRequest:
    """A model on devices, with its workload. `acceptance` is the share of drafted tokens kept (0: no drafting).

    `colocated`: the same pool reads and writes, in turns; else pools of their own do.
    """

    model: str
    shape: Shape
    accelerator: Accelerator
    workload: Workload
    precision: str = "fp8"
    kv_precision: str = "bf16"
    acceptance: float = 0.0
    software: Date | None = None
    imbalance: float = 1.15
    prefill: Pool | None = None
    decode: Pool | None = None
    colocated: bool = False

    def serving(self, data: Data) -> Serving:
        """Raises ValueError for a precision that the device lacks."""
        machine = Machine(self.accelerator, data.software(self.software), None, SUSTAINED)
        machine.peak(self.precision)
        if self.shape.experts:  # the open servers use DeepSeek's kernels for experts (SGLang, vLLM)
            machine = machine.with_deepseek_kernels()
        imbalance = self.imbalance if self.shape.experts else 1.0
        return Serving(machine, self.shape, self.precision, BYTES[self.kv_precision], imbalance)
