"""The tokenizer of a GGUF file as the files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import PreTokenizer

from ziphius.text.cuts import CUTS, Cut
from ziphius.text.gguf import CONTROL, NORMAL, UNUSED, USER_DEFINED

_UNKNOWN, _BYTE = 2, 6  # token types that only SentencePiece's vocabularies have
_SPECIAL = (CONTROL, _UNKNOWN)
_LONGEST_TOKEN = 1024  # characters; a piece's merges cost their square
_SPACE = "▁"
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class GGUFTokenizerError(ValueError):
    """A tokenizer that cannot be made from a GGUF file's keys: one line with what is wrong."""


def tokenizer_files(keys: Mapping[str, Any]) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json for the keys of a GGUF file; none where it has no tokenizer.

    Raises GGUFTokenizerError for keys that contradict each other, and for a way to part texts that is not known here.
    """
    kind = keys.get("tokenizer.ggml.model", "none")
    if kind == "none":
        return {}
    vocabulary = _Vocabulary(keys)
    if kind == "gpt2":
        inner = _byte_level(vocabulary, keys)
        add_bos = keys.get("tokenizer.ggml.pre") == "llama-bpe"  # what llama.cpp takes where the file does not say
    elif kind == "llama":
        inner = _sentencepiece(vocabulary, keys)
        add_bos = True
    else:
        raise GGUFTokenizerError(f"its tokenizer is of the kind {kind!r}; 'gpt2' and 'llama' are read")
    for type_, special in ((_SPECIAL, True), ((USER_DEFINED,), False)):
        added = [AddedToken(text, normalized=False, special=special) for text in vocabulary.of_type(*type_)]
        inner.add_special_tokens(added) if special else inner.add_tokens(added)
    add_bos = bool(keys.get("tokenizer.ggml.add_bos_token", add_bos)) and "bos_token" in vocabulary.named
    add_eos = bool(keys.get("tokenizer.ggml.add_eos_token", False)) and "eos_token" in vocabulary.named
    before = [vocabulary.named["bos_token"]] if add_bos else []
    after = [vocabulary.named["eos_token"]] if add_eos else []
    inner.post_processor = _post_processor(inner, before, after, byte_level=kind == "gpt2")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **vocabulary.named,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(template := keys.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return {
        "tokenizer.json": inner.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
    }


class _Vocabulary:
    """The tokens that are there: `ids` by spelling, their types, and the `named` special ones by their role."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        tokens = _texts(keys, "tokenizer.ggml.tokens")
        types = keys.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
        if not isinstance(types, list) or len(types) != len(tokens):
            raise GGUFTokenizerError("tokenizer.ggml.token_type does not give each token its type")
        self.ids = {text: token for token, text in enumerate(tokens) if types[token] != UNUSED}
        if len(self.ids) != len(tokens) - types.count(UNUSED):
            raise GGUFTokenizerError("tokenizer.ggml.tokens has a token twice")
        if any(len(text) > _LONGEST_TOKEN for text in self.ids):
            raise GGUFTokenizerError(f"tokenizer.ggml.tokens has a token of more than {_LONGEST_TOKEN} characters")
        self._types = types
        self.named = {}
        for role, name in _NAMED.items():
            token = keys.get(f"tokenizer.ggml.{name}_token_id")
            if isinstance(token, int) and 0 <= token < len(tokens) and types[token] != UNUSED:
                self.named[role] = tokens[token]

    def of_type(self, *types: int) -> list[str]:
        return [text for text, token in self.ids.items() if self._types[token] in types]


def _byte_level(vocabulary: _Vocabulary, keys: Mapping[str, Any]) -> Tokenizer:
    name = keys.get("tokenizer.ggml.pre")
    cut: Cut | None = CUTS.get(name) if isinstance(name, str) else None
    if cut is None:
        raise GGUFTokenizerError(f"tokenizer.ggml.pre is {name!r}; only {', '.join(CUTS)} are known")
    merges = []
    for merge in _texts(keys, "tokenizer.ggml.merges"):
        left, _, right = merge[1:].partition(" ")  # a token is no space, but may begin with one
        merges.append((merge[:1] + left, right))
    model = models.BPE(vocabulary.ids, _known(merges, vocabulary), ignore_merges=cut.whole_words)
    return _assembled(model, cut.normalizer(), cut.pre_tokenizer(), decoders.ByteLevel())


def _sentencepiece(vocabulary: _Vocabulary, keys: Mapping[str, Any]) -> Tokenizer:
    """As Llama 2's published tokenizer.json: byte-pair merges recovered from the scores, unknown text as bytes."""
    scores = keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < max(vocabulary.ids.values(), default=0) + 1:
        raise GGUFTokenizerError("tokenizer.ggml.scores does not give each token its score")
    prefixed = bool(keys.get("tokenizer.ggml.add_space_prefix", True))
    unknown = vocabulary.of_type(_UNKNOWN)
    model = models.BPE(
        vocabulary.ids,
        _merges_by_score(vocabulary, scores),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=bool(vocabulary.of_type(_BYTE)),
    )
    spaces = normalizers.Replace(" ", _SPACE)
    normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return _assembled(model, normalizer, None, decoder)


def _merges_by_score(vocabulary: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, the piece with the highest score first."""
    ids = vocabulary.ids
    pieces = sorted(vocabulary.of_type(NORMAL), key=lambda piece: (-scores[ids[piece]], ids[piece]))
    found = []
    for piece in pieces:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        found += sorted(_known(pairs, vocabulary), key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return found


def _known(pairs: list[tuple[str, str]], vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    ids = vocabulary.ids
    return [(left, right) for left, right in pairs if left in ids and right in ids and left + right in ids]


def _assembled(
    model: models.BPE,
    normalizer: normalizers.Normalizer | None,
    pre_tokenizer: PreTokenizer | None,
    decoder: decoders.Decoder,
) -> Tokenizer:
    inner = Tokenizer(model)
    if normalizer is not None:
        inner.normalizer = normalizer
    if pre_tokenizer is not None:
        inner.pre_tokenizer = pre_tokenizer
    inner.decoder = decoder
    return inner


def _post_processor(
    inner: Tokenizer, before: list[str], after: list[str], byte_level: bool
) -> processors.PostProcessor | None:
    steps: list[processors.PostProcessor] = [processors.ByteLevel(trim_offsets=False)] if byte_level else []
    if before or after:
        special = [(token, inner.token_to_id(token)) for token in {*before, *after}]
        single = [*before, "$A", *after]
        pair = [*single, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
        steps.append(processors.TemplateProcessing(single=single, pair=pair, special_tokens=special))
    return processors.Sequence(steps) if len(steps) > 1 else steps[0] if steps else None


def _texts(keys: Mapping[str, Any], name: str) -> list[str]:
    found = keys.get(name)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise GGUFTokenizerError(f"{name} is missing or no list of texts")
    return found
