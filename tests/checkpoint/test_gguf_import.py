"""A GGUF file becomes the folder that it was made of; one that cannot be trusted is refused in a line."""

import contextlib
import json
import re
import struct
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.gguf_files import NETWORKS, SIZES, imported, make, token_ids
from ziphius.checkpoint import CheckpointError, load_config, load_model, save_model
from ziphius.checkpoint.gguf import GGUFFile, describe, read, write_folder, write_gguf
from ziphius.model.llama.config import LlamaConfig

gguf = pytest.importorskip("gguf")

# What means nothing without experts.
OF_THE_GATE = ("first_k_dense_replace", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small Llama as GGUF, Q8_0."""
    folder = tmp_path_factory.mktemp("file")
    config = LlamaConfig(**SIZES)
    model = make(config)
    save_model(model, folder / "model")
    write_gguf(folder / "model", folder / "tiny.gguf", "q8_0", token_ids(config))
    return folder / "tiny.gguf"


@pytest.mark.parametrize("name", NETWORKS)
def test_out_and_in_again_is_the_same_folder(tmp_path, name):
    config = NETWORKS[name].model_copy(update={"num_nextn_predict_layers": 0, "initializer_range": 0.02})
    save_model(make(config), tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "out.gguf", "f32", token_ids(config))
    imported(tmp_path / "out.gguf", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "back"))
    assert before.keys() == after.keys()
    for tensor in before:
        assert torch.equal(before[tensor], after[tensor]), tensor
    contents = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("model", "back")]
    if "all dense" in name:
        for content in contents:
            content |= dict.fromkeys(OF_THE_GATE)
    assert contents[0] == contents[1]


def test_bf16_comes_back_as_bf16_with_the_selection_bias_in_fp32(tmp_path):
    config = NETWORKS["V3"].model_copy(update={"num_nextn_predict_layers": 0})
    save_model(make(config), tmp_path / "model", dtype=torch.bfloat16)
    write_gguf(tmp_path / "model", tmp_path / "out.gguf", "bf16", token_ids(config))
    imported(tmp_path / "out.gguf", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "back"))
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name


def test_shards_are_written_one_by_one(tmp_path, file, monkeypatch):
    monkeypatch.setattr(read, "SHARD_BYTES", 30_000)
    imported(file, tmp_path / "cut")
    monkeypatch.undo()
    imported(file, tmp_path / "whole")
    assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 2
    whole, cut = (load_model(tmp_path / folder).state_dict() for folder in ("whole", "cut"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


def test_fp32_is_what_the_numbers_in_the_file_stand_for(tmp_path, file):
    imported(file, tmp_path / "exact", "fp32")
    exact = load_file(tmp_path / "exact" / "model.safetensors")["model.embed_tokens.weight"]
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}["token_embd.weight"]
    assert torch.equal(exact, torch.from_numpy(gguf.dequantize(theirs.data, theirs.tensor_type)))


def described(tmp_path, name, **more):
    """What is read of the network called `name`, written with some keys more, or others."""
    config = NETWORKS[name].model_copy(update={"num_nextn_predict_layers": 0})
    save_model(make(config), tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "out.gguf", "f32", token_ids(config) | more)
    with GGUFFile(tmp_path / "out.gguf") as opened:
        return describe(opened)


def test_sampling_that_a_file_advises(tmp_path):
    advised = {"general.sampling.temp": 0.7, "general.sampling.min_p": 0.0}
    found = described(tmp_path, "llama", **advised).generation
    assert {name: found[name] for name in ("temperature", "min_p", "do_sample")} == {
        "temperature": 0.7, "min_p": 0.0, "do_sample": True
    }  # fmt: skip
    assert described(tmp_path, "llama", **{"general.sampling.temp": 0.0}).generation["do_sample"] is False


def test_keys_that_only_some_files_have(tmp_path):
    betas = {"qwen2.rope.scaling.yarn_beta_fast": 16.0, "qwen2.rope.scaling.yarn_beta_slow": 2.0}
    scaling = described(tmp_path, "qwen2, YaRN", **betas).config.rope_scaling
    assert (scaling.beta_fast, scaling.beta_slow) == (16, 2)
    groups = {"deepseek2.expert_group_count": 4, "deepseek2.expert_group_used_count": 2}  # as V2's, which is larger
    routing = described(tmp_path, "V2-Lite", **groups).config.routing
    assert (routing.groups, routing.kept_groups, routing.selection_bias) == (4, 2, False)
    with pytest.raises(CheckpointError, match=r"8 of each head's 16 values are rotated"):
        described(tmp_path, "llama", **{"llama.rope.dimension_count": 8})
    with pytest.raises(CheckpointError, match=r"one of several parts"):
        described(tmp_path, "llama", **{"split.count": 2})
    with pytest.raises(CheckpointError, match=r"split.count is 'two', not a whole number"):
        described(tmp_path, "llama", **{"split.count": "two"})


# --- number formats --------------------------------------------------------------------------------------------------

KINDS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def random_blocks(kind, rows, columns, rng):
    """Bytes [rows, …] of that format whose scales are finite: no fp16 in them has its top exponent bit."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // block * size), dtype=np.uint8)
    raw[:, 1::2] &= 0xBF
    raw[:, 0::2] &= 0xBF
    return raw


@pytest.mark.parametrize("name", KINDS)
def test_number_formats_are_read_as_transformers_reads_them(tmp_path, name):
    theirs = pytest.importorskip("transformers.integrations.gguf.dequant", reason="transformers before 5.20")
    kind = gguf.GGMLQuantizationType[name]
    raw = random_blocks(kind, 6, 512, np.random.default_rng(0))
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("odd", np.ones(3, np.float32))
    writer.add_tensor("stack", raw.reshape(2, 3, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "one.gguf") as file:
        assert file.tensors["stack"].shape == (2, 3, 512)
        whole = torch.from_numpy(np.array(file.values("stack")))
        assert torch.equal(torch.from_numpy(np.array(file.values("stack", 1))), whole[1])
    assert whole.isfinite().all()
    assert whole.unique().numel() > 50
    if kind in theirs.GGML_BLOCK:
        expected = theirs.dequantize(torch.from_numpy(raw).flatten(), kind).view(2, 3, 512)
    elif name in ("F16", "BF16"):
        expected = (
            torch.from_numpy(raw).view({"F16": torch.float16, "BF16": torch.bfloat16}[name]).float().view(2, 3, 512)
        )
    else:
        expected = torch.from_numpy(gguf.dequantize(raw, kind)).view(2, 3, 512)
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=0)


# --- what a file may not do ------------------------------------------------------------------------------------------


def refusal(path, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        imported(path, tmp_path / "folder")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.glob("folder/*"))
    return str(caught.value)


def changed(file, tmp_path, edit):
    raw = bytearray(file.read_bytes())
    other = edit(raw)
    (tmp_path / "bad.gguf").write_bytes(raw if other is None else other)
    return tmp_path / "bad.gguf"


def put(raw, place, form, value):
    raw[place : place + struct.calcsize(form)] = struct.pack(form, value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda raw: raw[:0], "cut short"),
        (lambda raw: raw[:3], "cut short"),
        (lambda raw: raw[:40], "cut short"),
        (lambda raw: raw[:-1], "cut short: "),
        (lambda raw: b"GGML" + raw[4:], "is not a GGUF file"),
        (lambda raw: put(raw, 4, "<I", 1), "is of GGUF version 1"),
        (lambda raw: put(raw, 4, ">I", 3), "is big-endian"),
        (lambda raw: put(raw, 8, "<Q", 2**60), "cut short: 1,152,921,504,606,846,976 entries are announced"),
        (lambda raw: put(raw, 16, "<Q", 2**63), "entries are announced"),
        (lambda raw: put(raw, 24, "<Q", 70_000), "cut short|a name of 70,000 bytes"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 17, "<I", 5), "gives token_embd.weight 5 dimensions"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 21, "<Q", 0), "the shape"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 21, "<Q", 33), "in blocks of 32"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 29, "<Q", 2**62), "cut short: token_embd.weight ends"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 37, "<I", 99), "number format 99"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 37, "<I", 9), "format Q8_1, which cannot be read"),
        (lambda raw: put(raw, raw.index(b"token_embd.weight") + 41, "<Q", 2**63), "cut short: token_embd.weight ends"),
        (lambda raw: raw.replace(b"blk.0.attn_q.weight", b"blk.0.attn_r.weight"), "lacks blk.0.attn_q.weight"),
        (lambda raw: raw.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"), "has two tensors blk.0.attn_k"),
        (lambda raw: raw.replace(b"llama.block_count", b"llama.block_cound"), "lacks the key llama.block_count"),
        (lambda raw: put(raw, raw.index(b"llama.block_count") + 21, "<I", 2**32 - 1), "states 4,294,967,295 layers"),
        (lambda raw: put(raw, raw.index(b"llama.block_count") + 21, "<I", 1), "holds blk.1."),
        (lambda raw: put(raw, raw.index(b"llama.embedding_length") + 26, "<I", 2**31), "larger than the file"),
        (lambda raw: put(raw, raw.index(b"llama.embedding_length") + 26, "<I", 32), r"its keys expect \[64, 32\]"),
        (lambda raw: put(raw, raw.index(b"llama.attention.head_count") + 30, "<I", 0), "num_attention_heads"),
        (lambda raw: put(raw, raw.index(b"eos_token_id") + 16, "<I", 64), "eos_token_id is 64, of 64 tokens"),
        (lambda raw: raw.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"), "'mamba'; deepseek2, llama"),
        (lambda raw: put(raw, len(raw) - 34, "<e", float("nan")), "values that are not finite"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_a_line(file, tmp_path, edit, said):
    assert re.search(said, refusal(changed(file, tmp_path, edit), tmp_path))


def test_any_byte_may_be_wrong(file, tmp_path):
    """Whatever the header says, there is a folder or a line: no other error, no long wait, no large allocation."""
    raw, rng = file.read_bytes(), Random(0)
    header = raw.index(b"blk.1.ffn_norm.weight") + 100
    opens = 0
    for _ in range(400):
        bad = bytearray(raw)
        for _ in range(rng.choice((1, 2, 8))):
            bad[rng.randrange(header)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        (tmp_path / "bad.gguf").write_bytes(bad)
        with contextlib.suppress(CheckpointError), GGUFFile(tmp_path / "bad.gguf") as opened:
            describe(opened)
            opens += 1
    assert 0 < opens < 300


def test_a_folder_that_holds_something_is_left_alone(file, tmp_path):
    imported(file, tmp_path / "folder")
    with pytest.raises(CheckpointError, match="not empty; name a new folder"):
        imported(file, tmp_path / "folder")


def test_a_failure_in_the_middle_leaves_nothing(file, tmp_path):
    def fails_late(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with GGUFFile(file) as opened, pytest.raises(KeyboardInterrupt):
        write_folder(opened, describe(opened), tmp_path / "folder", on_progress=fails_late)
    assert list((tmp_path / "folder").iterdir()) == []
    assert load_config(imported(file, tmp_path / "folder")).num_hidden_layers == 2
