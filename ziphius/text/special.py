"""Which tokens of a folder begin a text, end it and fill up a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ziphius.text import tokens
from ziphius.text.plain import Breaker


@dataclass(frozen=True)
class Specials:
    """Ids; None where a folder names none. `ends` are all tokens that end an answer, `eos` first."""

    bos: int | None
    eos: int
    pad: int
    ends: tuple[int, ...]


def find_specials(
    inner: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    named: Mapping[str, Any],
    generation: Mapping[str, Any],
    model: Mapping[str, Any],
) -> Specials:
    """What the files of a folder say, each empty where the folder lacks it.

    For each of bos, eos and pad the first that says something counts: `tokenizer_config.json` (`config`),
    `special_tokens_map.json` (`named`), `generation_config.json`, `config.json` (`model`), and last DeepSeek's own
    spelling, where the vocabulary has it. Without a pad token eos pads. The ends are eos and all that
    `generation_config.json` lists as `eos_token_id`, or `config.json` where that says nothing.

    Raises ValueError where no file names an end.
    """

    def find(what: str, spelling: str) -> int | None:
        for place in (config, named):
            said = place.get(f"{what}_token")
            text = said.get("content") if isinstance(said, Mapping) else said
            if isinstance(text, str) and (id := inner.token_to_id(text)) is not None:
                return id
        for place in (generation, model):
            ids = _ids(inner, place.get(f"{what}_token_id"))
            if ids:
                return ids[0]
        return inner.token_to_id(spelling)

    eos = find("eos", tokens.EOS)
    if eos is None:
        raise ValueError("no end token is known: name it as eos_token in tokenizer_config.json")
    more = _ids(inner, generation.get("eos_token_id")) or _ids(inner, model.get("eos_token_id"))
    pad = find("pad", tokens.PAD)
    # a tokenizer_config.json that says `"bos_token": null` means it, whatever config.json has
    silent = "bos_token" in config and config["bos_token"] is None
    bos = None if silent else find("bos", tokens.BOS)
    return Specials(bos, eos, eos if pad is None else pad, tuple(dict.fromkeys((eos, *more))))


def _ids(inner: tokenizers.Tokenizer, said: Any) -> list[int]:
    """One id, or several, of tokens that there are."""
    ids = said if isinstance(said, list) else [said]
    known = (id for id in ids if isinstance(id, int) and not isinstance(id, bool) and id >= 0)
    return [id for id in known if inner.id_to_token(id) is not None]


def breaker(inner: tokenizers.Tokenizer) -> Breaker:
    """Makes text of the spelling of a control token, also of one that only the normalizer makes of a text (`＜think＞`
    under NFKC)."""
    control, normalizer = _control(inner), inner.normalizer
    spellings, normalized = [a.content for a in control], [a.content for a in control if a.normalized]
    if normalizer is None or not normalized:
        return Breaker(spellings)
    return Breaker([*spellings, *map(normalizer.normalize_str, normalized)], normalizer.normalize_str)


def _control(inner: tokenizers.Tokenizer) -> list[AddedToken]:
    """The added tokens whose spelling no message may turn into a token.

    Those marked special, and those spelt with signs (`<think>`, `<tool_call>`); letters and runs of whitespace that
    some tokenizers add are text.
    """
    added = inner.get_added_tokens_decoder().values()
    return [a for a in added if a.content and (a.special or (len(a.content) > 1 and not _is_text(a.content)))]


def _is_text(content: str) -> bool:
    return all(letter.isalnum() or letter.isspace() for letter in content)
