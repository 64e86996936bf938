"""What BF16 and 8-bit weights change in a model's answers: perplexity, KL divergence from FP32, and right answers.

The model writes an answer to each of some held-out problems, in FP32 at temperature 1. Then every format reads the same
answers through the engine's own step: perplexity is exp(−mean log p) of their tokens, KL is Σ p·log(p/q) of the next
token's distribution p in FP32 and q in the format, and `same choice` the share of places with the same likeliest token.
Last, each format answers the problems itself, greedily.

    python bench/formats.py runs/r1-cpu-seed0
    python bench/formats.py FOLDER --task chain_sum --n 64

Writes bench/results/formats-MACHINE.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import arguments, console, write_results
from rich.table import Table
from torch import Tensor

from ziphius.checkpoint.device import load_on
from ziphius.engine.cache import PagedMemory
from ziphius.engine.complete import complete, engine_for
from ziphius.engine.forward import next_logits, step_hidden
from ziphius.engine.request import Request
from ziphius.engine.settings import SamplingSettings
from ziphius.evaluate.runner import evaluate
from ziphius.evaluate.settings import EvaluationSettings
from ziphius.ledger.model import model_folder
from ziphius.model.formats import Weights
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype
from ziphius.ops.placement import Placement
from ziphius.recipe.schema import parse_settings
from ziphius.tasks.registry import make_family
from ziphius.text.tokenizer import Tokenizer

BLOCK = 16


def log_probabilities(model: Transformer, tokens: list[int]) -> Tensor:
    """[T, W]: of what follows each of `tokens`, by the step that decoding uses."""
    blocks = -(-len(tokens) // BLOCK)
    memory = PagedMemory(model.config, blocks, BLOCK, compute_dtype(model.model.embed_tokens.weight))
    table = torch.arange(blocks, dtype=torch.int32).unsqueeze(0)
    rows = torch.zeros(len(tokens), dtype=torch.int32)
    placement = Placement.of(rows, torch.arange(len(tokens)), table, BLOCK)
    with torch.no_grad():
        hidden = step_hidden(model, torch.tensor(tokens), placement, memory)
        return torch.log_softmax(next_logits(model, hidden), dim=-1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="a trained model or run folder")
    parser.add_argument("--task", default="leg_counting")
    parser.add_argument("--set", action="append", help="key=value of the task; may be repeated")
    parser.add_argument("--n", type=int, default=256, help="problems")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()
    n = 16 if options.quick else options.n
    torch.set_num_threads(options.threads)
    folder = model_folder(options.folder)
    tokenizer = Tokenizer.load(folder)
    family = make_family(options.task, **parse_settings(options.set or []))
    asked = EvaluationSettings(n=n, samples=1, max_new_tokens=options.max_new_tokens)
    cpu = torch.device("cpu")

    exact = load_on(folder, cpu, "fp32")
    prompts = [tokenizer.prompt_ids(problem.prompt, thinking=True) for problem in family.problems("test", n)]
    sampling = SamplingSettings(temperature=1.0, max_new_tokens=options.max_new_tokens)
    requests = [
        Request(prompt, sampling.model_copy(update={"seed": options.seed + i}), stream=False)
        for i, prompt in enumerate(prompts)
    ]
    answers = [found[0].tokens for found in complete(engine_for(exact, tokenizer, requests), requests)]
    expected = [log_probabilities(exact, p + a)[len(p) - 1 : -1] for p, a in zip(prompts, answers, strict=True)]

    rows: list[dict[str, Any]] = []
    formats: list[Weights] = ["fp32", "bf16", "int8"]
    for weights in formats:
        model = load_on(folder, cpu, weights)
        losses, divergences, same = [], [], []
        for prompt, answer, log_p in zip(prompts, answers, expected, strict=True):
            log_q = log_probabilities(model, prompt + answer)[len(prompt) - 1 : -1]
            losses.append(-log_q.gather(1, torch.tensor(answer).unsqueeze(1)).flatten())
            divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
            same.append((log_q.argmax(-1) == log_p.argmax(-1)).float())
        greedy = evaluate(model, tokenizer, family, asked, thinking=True, seed=options.seed)
        rows.append(
            {
                "weights": weights,
                "perplexity": torch.cat(losses).double().mean().exp().item(),
                "kl": torch.cat(divergences).double().mean().item(),
                "same_choice": torch.cat(same).mean().item(),
                "greedy": greedy.greedy,
                "greedy_ci95": greedy.greedy_ci95,
            }
        )
    show(rows, sum(map(len, answers)), n)
    write_results("formats", options, {"problems": n, "formats": rows})


def show(rows: list[dict[str, Any]], tokens: int, n: int) -> None:
    table = Table(title=f"{tokens:,} tokens of answers to {n} held-out problems", title_justify="left")
    for name in ("weights", "perplexity", "change", "KL from fp32", "same choice", "right, greedy"):
        table.add_column(name, justify="left" if name == "weights" else "right")
    for row in rows:
        change = row["perplexity"] / rows[0]["perplexity"] - 1
        table.add_row(
            row["weights"],
            f"{row['perplexity']:.4f}",
            f"{change:+.2%}",
            f"{row['kl']:.1e}",
            f"{row['same_choice']:.2%}",
            f"{row['greedy']:.1%}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
