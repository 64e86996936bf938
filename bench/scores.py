"""Evaluation by log-probabilities: many questions, each with some continuations behind a long common beginning.

What multiple-choice tasks of lm-evaluation-harness ask for: `--questions` prefixes of 500 tokens, 4 continuations of 1
to 8 tokens each, and the log-probability of each continuation. Ours is the engine as `/v1/completions` calls it for
`echo` with `logprobs`: prompts that begin alike are read once. The peer reads each sequence whole, the longest first,
in padded batches, as the harness's `hf` backend does, with transformers' network. Both in fp32 on the same 1M network
of random weights; our cache is emptied before each round. The two must agree to 1e-3, or nothing is written.

    pip install -c constraints.txt -e .[bench]
    python bench/scores.py              # about two minutes on two slow cores
    python bench/scores.py --quick      # some seconds

Writes bench/results/scores-MACHINE.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from common import (
    SMALL_SHAPE,
    Contestant,
    arguments,
    best,
    console,
    place_of,
    quiet_libraries,
    ratio_of,
    show_contestants,
    take_turns,
    write_results,
)

from ziphius.checkpoint import load_model, save_model
from ziphius.engine.engine import Engine
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer

PREFIX, CONTINUATIONS, LONGEST = 500, 4, 8
ROWS = 64  # sequences at once on our side
BATCHES = (4, 16)  # on the peer's
TOLERANCE = 1e-3


Question = tuple[list[int], list[list[int]]]  # the prefix, and what may follow it


def questions(count: int, prefix: int, vocab_size: int, seed: int) -> list[Question]:
    """Random tokens; what they are changes no time."""
    draw = Random(seed)

    def tokens(length: int) -> list[int]:
        return draw.choices(range(vocab_size), k=length)

    return [(tokens(prefix), [tokens(draw.randint(1, LONGEST)) for _ in range(CONTINUATIONS)]) for _ in range(count)]


class Ours:
    """`ziphius.engine.engine.Engine`, with a token drawn behind each sequence, as the harness asks for."""

    def __init__(self, folder: Path, asked: Sequence[Question], device: torch.device) -> None:
        self.asked = asked
        self.engine = Engine(load_model(folder, device=device), None, EngineSettings(max_rows=ROWS, speculation="off"))
        self.found: list[float] = []

    def run(self) -> None:
        settings = SamplingSettings(temperature=0, max_new_tokens=1)
        self.engine.weights_changed()  # empties the cache
        spans: dict[int, tuple[int, int]] = {}
        for prefix, continuations in self.asked:
            for tokens in continuations:
                request = Request([*prefix, *tokens], settings, stream=False, prompt_logprobs=1)
                spans[self.engine.add(request)] = len(prefix), len(tokens)
        sums: dict[int, float] = {}
        while self.engine.has_work:
            for update in self.engine.step():
                start, count = spans[update.id]
                assert update.prompt_logprobs is not None
                sums[update.id] = sum(logprob or 0.0 for logprob in update.prompt_logprobs[start : start + count])
        self.found = [sums[id] for id in spans]


class Peer:
    """transformers' network, read as lm-evaluation-harness's `HFLM._loglikelihood_tokens` has it."""

    def __init__(self, folder: Path, asked: Sequence[Question], batch: int, device: torch.device) -> None:
        from transformers import DeepseekV3ForCausalLM

        self.batch = batch
        self.model = DeepseekV3ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="grouped_mm"
        )
        self.model.eval().to(device)
        self.sequences = [([*prefix, *tokens], len(tokens)) for prefix, group in asked for tokens in group]
        self.found: list[float] = []

    @torch.no_grad()
    def run(self) -> None:
        order = sorted(range(len(self.sequences)), key=lambda place: -len(self.sequences[place][0]))
        self.found = [0.0] * len(order)
        for first in range(0, len(order), self.batch):
            places = order[first : first + self.batch]
            group = [self.sequences[place] for place in places]
            width = len(group[0][0]) - 1  # nothing follows the last token
            ids = torch.tensor([tokens[:-1] + [0] * (width + 1 - len(tokens)) for tokens, _ in group]).to(
                self.model.device
            )
            logprobs = torch.log_softmax(self.model(ids, use_cache=False).logits.float(), -1)
            for place, (tokens, count), row in zip(places, group, logprobs, strict=True):
                wanted = torch.tensor(tokens[-count:], device=row.device)
                own = row[len(tokens) - 1 - count : len(tokens) - 1]
                self.found[place] = float(own.gather(1, wanted.unsqueeze(1)).sum())


def measure(folder: Path, options: argparse.Namespace) -> None:
    count, prefix, rounds = (2, 100, 2) if options.quick else (options.questions, PREFIX, options.rounds)
    asked = questions(count, prefix, SMALL_SHAPE["vocab_size"], options.seed)
    work = count * CONTINUATIONS
    device = place_of(options).device
    ours, peers = Ours(folder, asked, device), [Peer(folder, asked, batch, device) for batch in BATCHES]
    contestants = [Contestant("ziphius engine", "ours", "fp32", ours.run, work, {"rows": ROWS})]
    contestants += [Contestant("transformers", "peer", "fp32", p.run, work, {"batch": p.batch}) for p in peers]
    take_turns(contestants, rounds)
    worst = max(abs(a - b) for peer in peers for a, b in zip(ours.found, peer.found, strict=True))
    if worst > TOLERANCE:
        raise SystemExit(f"the two sides differ by {worst:.1e} nats; nothing is compared")
    title = f"{count} questions: {CONTINUATIONS} continuations of 1 to {LONGEST} tokens behind {prefix} tokens"
    show_contestants(title, contestants, "sequences/s")
    peer = best(contestants, "peer", "fp32")
    assert peer is not None
    ratio = ratio_of(contestants[0], peer)
    console.print(
        f"{ratio['ratio']:.1f} times the peer's speed ({ratio['lowest_round']:.1f} to {ratio['highest_round']:.1f}); "
        f"log-probabilities agree to {worst:.0e}"
    )
    content = {"questions": count, "prefix_tokens": prefix, "continuations": CONTINUATIONS, "worst_difference": worst}
    write_results("scores", options, content | {"ratio": ratio, "contestants": [c.as_dict() for c in contestants]})


def main() -> None:
    parser = arguments(__doc__, device="auto")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    shape = dict(SMALL_SHAPE)
    model = Transformer(ladder(shape.pop("depth"), shape.pop("vocab_size"), **shape))
    model.init_weights(torch.Generator().manual_seed(options.seed))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        measure(Path(folder), options)


if __name__ == "__main__":
    main()
