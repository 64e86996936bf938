"""Small jobs of each kind, run in processes of their own: to be killed, and to be shared among ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from pathlib import Path
from random import Random

import torch

from ziphius.engine.complete import complete  # noqa: F401  (the server of processes loads it once)
from ziphius.model.presets import ladder
from ziphius.reason.grpo import GRPOSource
from ziphius.reason.rollout import TaskMix
from ziphius.reason.settings import GRPOSettings
from ziphius.tasks.base import Family, Problem, Verdict
from ziphius.text.corpora import GeneratedSource, Mixture
from ziphius.text.packing import PackedStream
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.losses import next_token_loss, policy_loss
from ziphius.train.place import Place, join, leave
from ziphius.train.settings import LossSettings, PolicySettings, TrainSettings
from ziphius.train.sources import PretrainSource, SampleSource
from ziphius.train.start import new_model
from ziphius.train.trainer import Interrupted, Trainer

STEPS = 10


class Letters(Family):
    """Say anything; the reward of a random policy comes from the language of its thoughts."""

    name = "letters"

    def draw(self, ticket):
        return Problem(self.name, f"say {ticket % 97}", "1")

    def verify(self, problem, answer):
        return Verdict(0.0, "wrong")


def make(kind: str, folder: Path, tokenizer: Tokenizer, place: Place, **options) -> Trainer:
    precision = options.get("precision", "bf16")
    shape = {"hidden_size": 32, "n_routed_experts": 4, "initializer_range": 0.1}
    model = new_model(ladder(2, tokenizer.vocab_size, **shape), 0, place)
    settings = TrainSettings(
        steps=options.get("steps", STEPS), save_every=3, precision=precision, optimizer={"lr": 5e-3}
    )
    loss = lambda m, batch, norm: next_token_loss(m, batch, LossSettings(), norm)
    if kind == "pretrain":
        write = lambda rng: " ".join(rng.choice(["whale", "dives", "deep", "1", "2"]) for _ in range(rng.randint(1, 9)))
        mixture = Mixture({"a": GeneratedSource(write, 1)}, {"a": 1.0}, 1)
        source = PretrainSource(PackedStream(mixture, tokenizer, 24), place, 6, 2, first_rows=3, warmup_steps=5)
    elif kind == "sft":
        rng = Random(0)
        words = [tokenizer.encode(" ".join(rng.choices(["whale", "dives"], k=rng.randint(2, 5)))) for _ in range(20)]
        samples = [(ids, [0.0] + [1.0] * (len(ids) - 1)) for ids in words]
        source = SampleSource(samples, place, 32, 5, 2, tokenizer.pad_id, 0)
    else:
        policy = PolicySettings(kl_weight=0.05)
        grpo = GRPOSettings(
            group_size=4, prompts_per_step=4, max_new_tokens=5, mini_batches=2, reference_refresh=4,
            dynamic_sampling=True, max_rounds=2, policy=policy, rewards={"language": 1.0}, micro_tokens=100,
        )  # fmt: skip
        tasks = TaskMix([(Letters(), 1.0)], 0)
        source = GRPOSource(model, tokenizer, tasks, grpo, place.computing(precision), seed=0, thinking=True)
        loss = lambda m, batch, norm: policy_loss(m, batch, LossSettings(mtp_weight=0.1), policy, norm)
    return Trainer(model, source, loss, settings, folder, place=place)


def work(kind: str, folder: Path, tokenizer_folder: Path, rank: int, size: int, port: int, options: dict) -> None:
    """One rank's life: exit code 0 when trained to the end, 3 when asked to stop."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = join("cpu")
    trainer = make(kind, folder, Tokenizer.load(tokenizer_folder), place, **options)
    if "stop" in options and options["stop"][0] == rank:
        _signal_itself(trainer, options["stop"][1])
    try:
        trainer.run()
        torch.save(trainer.weights.master, folder / f"master{rank}.pt")
    except Interrupted:
        raise SystemExit(3) from None
    finally:
        leave()


def _signal_itself(trainer: Trainer, step: int) -> None:
    collect = trainer.weights.collect

    def and_signal():
        if trainer.progress.step == step:  # in the middle of a step: the ranks have agreed already to go on
            os.kill(os.getpid(), 15)
        return collect()

    trainer.weights.collect = and_signal


class Job:
    """The processes of one start of a run."""

    def __init__(self, kind: str, folder: Path, tokenizer_folder: Path, size: int = 1, **options) -> None:
        context = multiprocessing.get_context("forkserver")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [
            context.Process(target=work, args=(kind, folder, tokenizer_folder, rank, size, port, options))
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[int | None]:
        for process in self.processes:
            process.join(120)
        return [process.exitcode for process in self.processes]

    def kill(self, folder: Path, steps: int, seconds: float) -> bool:
        """SIGKILL to all of them, so long after that many steps were logged; whether that met them alive."""
        log = folder / "metrics.jsonl"
        while not (log.exists() and log.read_bytes().count(b"\n") >= steps):
            if not any(process.is_alive() for process in self.processes):
                break
            time.sleep(0.002)
        time.sleep(seconds)
        alive = any(process.is_alive() for process in self.processes)
        for process in self.processes:
            process.kill()
        self.wait()
        return alive
