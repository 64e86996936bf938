"""Published scaling rules: what to train with a given amount of arithmetic, and the loss to expect.

DeepSeek LLM (arXiv 2401.02954, §3) writes a model's size as M, the training FLOPs per token without the vocabulary's
matrices, so that C = M · D for D tokens, and finds M = 0.1715 · C^0.5243, D = 5.8316 · C^0.4757, the batch in tokens
0.2920 · C^0.3271 and the learning rate 0.3118 · C^−0.1250. It was fitted on dense models of 1e17 to 3e20 FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ziphius.cost.flops import count_parameters, train_flops_per_token
from ziphius.cost.interval import Interval
from ziphius.model.config import ModelConfig

RULE = "DeepSeek LLM (arXiv 2401.02954, section 3): M = 0.1715·C^0.5243 FLOPs a token, C/M tokens"
FITTED = (1e17, 3e20)  # FLOPs of the runs behind the rule


@dataclass(frozen=True)
class LossLaw:
    """Loss in nats per token of text from the web: E + A/N^α + B/D^β for N parameters and D tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


# The same runs fitted twice: Besiroglu et al. 2024 (arXiv 2404.10102); Hoffmann et al. 2022 (arXiv 2203.15556, eq. 10).
REFIT = LossLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
CHINCHILLA = LossLaw(1.69, 406.4, 410.7, 0.34, 0.28)


def model_scale(config: ModelConfig, seq_len: int) -> float:
    """M of a network: training FLOPs per token without embedding, head and prediction modules."""
    return train_flops_per_token(config, seq_len) - 6 * count_parameters(config).head


def best_scale(compute: float) -> float:
    """M that the rule gives for `compute` FLOPs."""
    return 0.1715 * compute**0.5243


def best_batch(compute: float) -> float:
    """Tokens a step."""
    return 0.2920 * compute**0.3271


def best_learning_rate(compute: float) -> float:
    """Peak learning rate of AdamW."""
    return 0.3118 * compute**-0.1250


def expected_loss(config: ModelConfig, tokens: Interval) -> Interval:
    """Loss of a dense model with as many active parameters: the refit's point, and the range of both fits.

    A mixture of experts does better than that; text of another kind has another floor. The fits saw models of 44M
    parameters and more; whatever they say of smaller ones, guessing evenly gives ln(vocabulary).
    """
    guess = math.log(config.vocab_size)
    counts = count_parameters(config)
    size = counts.active_without_embedding
    both = [min(guess, law.loss(size, many)) for law in (REFIT, CHINCHILLA) for many in (tokens.low, tokens.high)]
    point = min(guess, REFIT.loss(size, tokens.point))
    return Interval(point, min(point, *both), max(point, *both))


def stretched(compute: float) -> float:
    """How many times `compute` lies outside what the rule was fitted on; 1 inside."""
    low, high = FITTED
    return max(1.0, low / compute, compute / high)


def vocabulary_for(hidden: int, body: float) -> int:
    """A power of two from 1,024 to 131,072: as large as leaves embedding and head a quarter of the `body`'s weights."""
    wanted = 0.25 * body / (2 * hidden)
    return 2 ** min(17, max(10, int(math.log2(max(wanted, 1.0)))))
