"""`ziphius export`: from a run folder to a file, and from the file to the same tokens in llama.cpp."""

import ctypes

import numpy as np
import pytest
import torch

import ziphius
from ziphius.checkpoint import load_model, save_model
from ziphius.checkpoint.gguf import write_gguf
from ziphius.checkpoint.gguf.deepseek2 import small_differences
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder
from ziphius.model.scaling import YarnScaling
from ziphius.model.transformer import Transformer
from ziphius.serve.export import export_folder, import_file
from ziphius.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

YARN = YarnScaling(factor=8, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0)
SOFTMAX = {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False}
VARIANTS = {
    "the ladder's": ladder(3, vocab_size=330),
    "wide heads": ladder(3, vocab_size=330, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=64),
    "V3": ladder(
        3, vocab_size=330, q_lora_rank=40, n_group=4, topk_group=2, routed_scaling_factor=2.5, rope_scaling=YARN
    ),
    "tied, all dense": ladder(2, vocab_size=330, n_routed_experts=None, tie_word_embeddings=True),
    "V2-Lite": ladder(
        3, vocab_size=330, **SOFTMAX, routed_scaling_factor=4.0, n_shared_experts=2,
        rope_scaling=YARN.model_copy(update={"mscale": 0.707, "mscale_all_dim": 0.707}),
    ),
    "Moonlight": ladder(3, vocab_size=330, rope_theta=50000.0, rms_norm_eps=1e-5, routed_scaling_factor=2.446),
}  # fmt: skip


def network(config: ModelConfig) -> Transformer:
    """Weights that make logits of order one, and a selection bias that changes what is chosen."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "e_score_correction_bias" in name:
                tensor.normal_(0.0, 0.3, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(1.0, 0.3, generator=generator)
            else:
                scale = 0.5 if "embed_tokens" in name else tensor.shape[-1] ** -0.5
                tensor.normal_(0.0, scale, generator=generator)
    return model


@pytest.fixture
def run_folder(tmp_path, tokenizer):
    """A run with one trained stage."""
    stage = tmp_path / "whale-seed0" / "stages" / "02-pretrain"
    save_model(network(VARIANTS["the ladder's"]), stage)
    tokenizer.save(stage)
    return tmp_path / "whale-seed0"


def test_a_run_folder_becomes_one_file(run_folder, tmp_path, capsys, tokenizer):
    out = tmp_path / "whale.gguf"
    export_folder(run_folder, out, "bf16")
    reader = gguf.GGUFReader(out)
    assert reader.get_field("general.name").contents() == "whale-seed0"
    assert reader.get_field("tokenizer.ggml.pre").contents() == "deepseek-v3"
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == 330
    said = capsys.readouterr().out
    assert f"{out}: " in said
    assert f"{out.stat().st_size / 1e6:,.1f} MB" in said
    assert "Note: 1 prediction module(s) left out" in said


def test_and_the_file_becomes_a_folder_again(run_folder, tmp_path, capsys, tokenizer):
    export_folder(run_folder, tmp_path / "whale.gguf", "f32")
    import_file(tmp_path / "whale.gguf", tmp_path / "back", "auto")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{tmp_path / 'back'}: deepseek_v3, ")
    assert said.endswith("weights, float32, from F32")
    assert Tokenizer.load(tmp_path / "back").encode("whales dive") == tokenizer.encode("whales dive")
    prompts = [tokenizer.encode("How many whales?")]
    stage = run_folder / "stages" / "02-pretrain"
    ours, back = (
        ziphius.generate(load_model(folder), prompts, max_new_tokens=8, temperature=0.0)[0].tokens
        for folder in (stage, tmp_path / "back")
    )
    assert ours == back


def test_a_tokenizer_that_is_not_known_is_left_out_with_a_note(run_folder, tmp_path, capsys):
    export_folder(run_folder, tmp_path / "whale.gguf", "bf16")
    raw = (tmp_path / "whale.gguf").read_bytes().replace(b"deepseek-v3", b"deepseek-v9")
    (tmp_path / "whale.gguf").write_bytes(raw)
    import_file(tmp_path / "whale.gguf", tmp_path / "back", "auto")
    assert "Note: no tokenizer is written, for tokenizer.ggml.pre is 'deepseek-v9'" in capsys.readouterr().out
    assert not (tmp_path / "back" / "tokenizer.json").exists()


# --- in llama.cpp, where its Python bindings are installed -----------------------------------------------------------


class LlamaCpp:
    """A GGUF file in llama.cpp, in fp32 throughout: its flash attention rounds to fp16."""

    def __init__(self, path):
        self.c = c = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
        self.silent = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self.silent, ctypes.c_void_p(0))
        self.model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        assert self.model
        self.vocabulary = c.llama_model_get_vocab(self.model)
        settings = c.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 256, 1, 1
        settings.type_k = settings.type_v = c.GGML_TYPE_F32
        settings.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = c.llama_init_from_model(self.model, settings)
        assert self.context

    def logits(self, tokens, start=0):
        """[T, W] for `tokens` that follow `start` earlier ones."""
        c = self.c
        if not start:
            c.llama_memory_clear(c.llama_get_memory(self.context), True)
        batch = c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = token, start + place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert c.llama_decode(self.context, batch) == 0
        size = c.llama_vocab_n_tokens(self.vocabulary)
        rows = [np.ctypeslib.as_array(c.llama_get_logits_ith(self.context, i), (size,)) for i in range(len(tokens))]
        c.llama_batch_free(batch)
        return torch.from_numpy(np.array(rows))

    def greedy(self, prompt, new_tokens):
        tokens, row = list(prompt), self.logits(prompt)[-1]
        for _ in range(new_tokens):
            tokens.append(int(row.argmax()))
            row = self.logits(tokens[-1:], start=len(tokens) - 1)[0]
        return tokens[len(prompt) :]

    def tokenize(self, text):
        raw, room = text.encode(), (self.c.llama_token * 512)()
        count = self.c.llama_tokenize(self.vocabulary, raw, len(raw), room, len(room), False, True)
        return list(room[:count])


@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_computes_the_same(tmp_path, name):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = network(VARIANTS[name])
    save_model(model, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "out.gguf")
    theirs = LlamaCpp(tmp_path / "out.gguf")
    allowed = 1e-3 if small_differences(model.config) else 3e-5
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, 330, (length,), generator=generator).tolist() for length in (1, 9, 40)]
    for prompt in prompts:
        ours = model(torch.tensor([prompt])).logits[0].detach()
        torch.testing.assert_close(theirs.logits(prompt), ours, atol=allowed, rtol=1e-4)
    completed = ziphius.generate(model, prompts, max_new_tokens=48, temperature=0.0)
    for prompt, completion in zip(prompts, completed, strict=True):
        assert theirs.greedy(prompt, len(completion.tokens)) == completion.tokens


def test_llama_cpp_reads_text_as_we_do(run_folder, tmp_path, tokenizer):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    export_folder(run_folder, tmp_path / "whale.gguf", "f32")
    theirs = LlamaCpp(tmp_path / "whale.gguf")
    conversation = tokenizer.render([{"role": "user", "content": "How many whales dive?"}])
    for text in (
        conversation,
        "a whale   dives\n\n12345 times, naïvely: 鲸鱼 🐋!",
        "if (a[0]==b->c) {\n\treturn 'x';\n}",
    ):
        assert theirs.tokenize(text) == tokenizer.encode(text)
