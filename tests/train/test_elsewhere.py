"""Steps of every kind of stage on a device that refuses to mix with the processor: no tensor is left behind.

The numbers are those of the processor's own torch backend.
"""

import io
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, redirect_stderr

import pytest
import torch

from tests.device import NAME, elsewhere
from tests.model.variants import FAMILIES, network, tokens_of
from tests.packed import pack_samples
from tests.train.jobs import Letters, make
from ziphius import ops
from ziphius.checkpoint.folder import load_model, save_model
from ziphius.engine.complete import complete
from ziphius.engine.engine import Engine
from ziphius.engine.request import Request
from ziphius.engine.settings import EngineSettings, SamplingSettings
from ziphius.evaluate.runner import evaluate
from ziphius.evaluate.settings import EvaluationSettings
from ziphius.evaluate.skill import worked_solution_accuracy
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.batch import stack_rows
from ziphius.train.losses import next_token_loss
from ziphius.train.place import Place
from ziphius.train.settings import LossSettings

STEPS = 2  # of GRPO these are two mini-batches of one set of rollouts
VARYING = {"seconds", "tokens_per_second", "rollout_seconds"}  # and which processor does it varies them, too


@pytest.fixture(scope="module")
def apart():
    """Runs a function in a process that knows the device: autograd asks what there is at its first backward pass."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context, initializer=elsewhere) as pool:
        yield lambda work, *args: pool.submit(work, *args).result()


def computing(there):
    """The place, and the context in which the processor computes as other devices do."""
    torch.set_num_threads(1)
    return (Place(device=elsewhere()), nullcontext()) if there else (Place(), ops.backend("torch"))


def train(there, kind, folder, tokenizer_folder, precision):
    place, computes = computing(there)
    with computes:
        trainer = make(kind, folder, Tokenizer.load(tokenizer_folder), place, precision=precision)
        assert {p.device.type for p in trainer.model.parameters()} == {place.device.type}
        rows = [trainer.step() for _ in range(STEPS)]
    return rows, {name: weight.float().cpu() for name, weight in trainer.model.state_dict().items()}


@pytest.mark.parametrize(("kind", "precision"), [("pretrain", "bf16"), ("sft", "fp32"), ("grpo", "fp32")])
def test_steps_come_to_the_same(apart, tmp_path, tokenizer_folder, kind, precision):
    """Mixture of experts, prediction modules, packed segments; rollouts, mini-batches and a reference."""
    here, weights_here = apart(train, False, kind, tmp_path / "here", tokenizer_folder, precision)
    there, weights_there = apart(train, True, kind, tmp_path / "there", tokenizer_folder, precision)
    close = {"rel": 1e-3, "abs": 1e-4} if precision == "fp32" else {"rel": 0.1, "abs": 0.05}
    for ours, theirs in zip(there, here, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - VARYING:
            assert ours[name] == pytest.approx(theirs[name], **close), name
    for name, weight in weights_there.items():
        assert torch.allclose(weight, weights_here[name], rtol=0, atol=2e-4 if precision == "fp32" else 0.03), name


def test_rollouts_and_updates_in_bf16(apart, tmp_path, tokenizer_folder):
    """Other sums round otherwise, and a sampled token may become another: the numbers are these rollouts' own."""
    rows, _ = apart(train, True, "grpo", tmp_path, tokenizer_folder, "bf16")
    assert rows[0]["response_length"] > 0
    assert 0 < rows[0]["mismatch"] < 0.05  # sampler and trainer are the same network
    assert all(torch.tensor([row["loss"], row["kl"], row["grad_norm"]]).isfinite().all() for row in rows)


# --- stopping and going on -------------------------------------------------------------------------------------------


def go_on(there, folder, tokenizer_folder, steps):
    """GRPO up to a step, and what it said on stderr."""
    place, computes = computing(there)
    said = io.StringIO()
    with computes, redirect_stderr(said):
        trainer = make("grpo", folder, Tokenizer.load(tokenizer_folder), place, steps=steps, precision="fp32")
        trainer.run()
    return torch.cat([weight.detach().cpu().flatten() for weight in trainer.model.parameters()]), said.getvalue()


def test_a_state_saved_on_one_device_opens_on_another(apart, tmp_path, tokenizer_folder):
    """Between two mini-batches, of which the second is part of the state."""
    apart(go_on, True, tmp_path / "there", tokenizer_folder, 1)
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    there, said = apart(go_on, True, tmp_path / "there", tokenizer_folder, 2)
    assert "goes on with" not in said
    here, said = apart(go_on, False, tmp_path / "here", tokenizer_folder, 2)
    assert f"begun with {NAME}, torch {torch.__version__}, goes on with " in said
    assert torch.allclose(there, here, rtol=0, atol=1e-4)


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(there, folder, tokenizer_folder):
    place, computes = computing(there)
    tokenizer = Tokenizer.load(tokenizer_folder)
    settings = EvaluationSettings(n=4, samples=2, max_new_tokens=6, show=4)
    tokens = tokenizer.encode("a whale dives deep")
    samples = [(tokens, [1.0] * len(tokens))]
    with computes:
        model = load_model(folder, device=place.device)
        found = evaluate(model, tokenizer, Letters(), settings, thinking=True, seed=3, place=place)
        skill = worked_solution_accuracy(model, samples, tokenizer.pad_id, place.computing("bf16"))
    return found.as_dict(), skill


def test_evaluation_comes_to_the_same(apart, build, tokenizer, tokenizer_folder, tmp_path):
    save_model(build(vocab_size=tokenizer.vocab_size), tmp_path / "model")
    here, there = (apart(ask, there, tmp_path / "model", tokenizer_folder) for there in (False, True))
    assert there == here
    assert any(example["response"] for example in here[0]["examples"])


# --- other families --------------------------------------------------------------------------------------------------


def learn_and_answer(there, folder):
    """Gradients on packed samples, and greedy answers."""
    place, computes = computing(there)
    model = load_model(folder, device=place.device)
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tokens = tokens_of(model.config, (2, 24))
    whole = [(row, [1.0] * len(row)) for row in (*tokens[:, :15].tolist(), *tokens[:, 15:].tolist())]
    rows = pack_samples(whole, 24, 0)
    with computes:
        batch = place.put(stack_rows(rows, masked=True))
        parts = next_token_loss(model, batch, LossSettings(), batch.norm)
        parts.total.backward()
        gradients = {name: weight.grad.float().cpu() for name, weight in model.named_parameters()}
        engine = Engine(model, None, EngineSettings(max_rows=4, speculation="off"))
        asked = SamplingSettings(temperature=0, max_new_tokens=6, ignore_eos=True)
        answers = complete(engine, [Request(row, asked, stream=False) for row in tokens[:, :9].tolist()])
    losses = {name: value.item() for name, value in parts.sums.items()}
    return losses, gradients, [answer.tokens for (answer,) in answers]


@pytest.mark.parametrize("family", ["Qwen2.5, YaRN, tied", "Qwen3, experts", "Llama 3.1"])
def test_every_family_learns_and_answers(apart, tmp_path, family):
    save_model(network(FAMILIES[family]), tmp_path)
    (losses, gradients, answers), (theirs, others, expected) = (
        apart(learn_and_answer, there, tmp_path) for there in (True, False)
    )
    assert losses == pytest.approx(theirs, rel=1e-4)
    assert answers == expected
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-3, atol=1e-5), name
