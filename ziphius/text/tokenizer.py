"""The tokenizer: byte-level BPE in DeepSeek-V3's published form, in a folder that transformers' AutoTokenizer opens."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from ziphius.disk.write import write_text
from ziphius.text import tokens
from ziphius.text.chat import render_chat
from ziphius.text.template import CHAT_TEMPLATE

# V3's tokenizer.json cuts text three times before the bytes are merged: digits by threes, runs of Chinese and Japanese,
# then words, marks and whitespace. Source: the published file, as llama.cpp's `deepseek-v3` pre-tokenizer restates it.
SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
BYTES = 256
LONGEST_RUN = 256  # characters of a text in training that no whitespace parts
_LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)")


class Tokenizer:
    """Text ↔ token ids, with DeepSeek's special tokens and chat template.

    Encoding recognises the special tokens wherever they stand in the text; it never adds one by itself.
    """

    def __init__(self, inner: tokenizers.Tokenizer, chat_template: str = CHAT_TEMPLATE) -> None:
        """Wraps a `tokenizers.Tokenizer`; ValueError unless it holds bos, eos, user and assistant tokens."""
        for token in (tokens.BOS, tokens.EOS, tokens.USER, tokens.ASSISTANT):
            if inner.token_to_id(token) is None:
                raise ValueError(f"not a DeepSeek tokenizer: it has no token {token}")
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner
        self.chat_template = chat_template

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Opens a folder with `tokenizer.json` and `tokenizer_config.json`, ours or a published DeepSeek one.

        The folder's own chat template (in the config, or in `chat_template.jinja`) is kept where it has one.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: a file that does not parse, or a tokenizer without DeepSeek's special tokens.
        """
        model_path, config_path = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
        for path in (model_path, config_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: give a folder that Tokenizer.save wrote")
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{config_path} is not JSON: {error}") from error
        template_path = Path(folder) / "chat_template.jinja"
        template = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
        try:
            inner = tokenizers.Tokenizer.from_str(model_path.read_text(encoding="utf-8"))
            return cls(inner, template or CHAT_TEMPLATE)
        except Exception as error:  # tokenizers raises bare Exception on a file that it cannot read
            raise ValueError(f"{model_path} cannot be used: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` (chat template inside), each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens.BOS,
            "eos_token": tokens.EOS,
            "pad_token": tokens.PAD if self.inner.token_to_id(tokens.PAD) is not None else tokens.EOS,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": self.chat_template,
        }
        write_text(folder / "tokenizer.json", self.inner.to_str(pretty=True))
        write_text(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return self.encode_batch([text])[0]  # thrice as fast as one by itself, and other threads run meanwhile

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD. Skipping drops bos, eos and pad only."""
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for, none for an id without a token; several ids may make up one character."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    @cached_property
    def longest_token(self) -> int | None:
        """The bytes of the longest token, so that a text of N characters has N over as many tokens at least.

        None where the tokenizer changes texts before it splits them: it may shorten them.
        """
        normalizer = self.inner.normalizer
        unchanged = normalizer is None or b'"normalizers":[]' in normalizer.__getstate__()
        return max(map(len, self._bytes)) if unchanged else None

    @property
    def added_ids(self) -> list[int]:
        """The ids of the special tokens, which no text but their own spelling gives."""
        return sorted(self.inner.get_added_tokens_decoder())

    @cached_property
    def _bytes(self) -> list[bytes]:
        spellings = map(self.inner.id_to_token, range(self.vocab_size))
        added = self.inner.get_added_tokens_decoder()
        return [
            b"" if text is None else text.encode() if token in added else _to_bytes(text)
            for token, text in enumerate(spellings)
        ]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = True,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, beginning with bos; see `render_chat`."""
        return render_chat(
            self.chat_template,
            messages,
            bos_token=tokens.BOS,
            eos_token=tokens.EOS,
            thinking=thinking,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def prompt_ids(self, question: str, thinking: bool = True) -> list[int]:
        """The ids of a conversation that asks one question and awaits the answer."""
        return self.encode(self.render([{"role": "user", "content": question}], thinking=thinking))

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    @cached_property
    def digest(self) -> str:
        """A short name of what the tokenizer does: equal for equal tokenizers with equal chat templates."""
        return blake2b((self.inner.to_str() + self.chat_template).encode(), digest_size=8).hexdigest()

    @property
    def bos_id(self) -> int:
        return self._id(tokens.BOS)

    @property
    def eos_id(self) -> int:
        return self._id(tokens.EOS)

    @property
    def pad_id(self) -> int:
        return self._id(tokens.PAD)

    @property
    def think_id(self) -> int:
        return self._id(tokens.THINK)

    @property
    def end_think_id(self) -> int:
        return self._id(tokens.END_THINK)

    @property
    def user_id(self) -> int:
        return self._id(tokens.USER)

    @property
    def assistant_id(self) -> int:
        return self._id(tokens.ASSISTANT)

    @property
    def fim_begin_id(self) -> int:
        return self._id(tokens.FIM_BEGIN)

    @property
    def fim_hole_id(self) -> int:
        return self._id(tokens.FIM_HOLE)

    @property
    def fim_end_id(self) -> int:
        return self._id(tokens.FIM_END)

    def _id(self, token: str) -> int:
        token_id = self.inner.token_to_id(token)
        if token_id is None:
            raise ValueError(f"this tokenizer has no token {token}: train one with train_tokenizer, or use R1's")
        return token_id


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns a byte-level BPE; the same texts always give the same file.

    Ids: bos 0, eos 1, pad 2, the 256 bytes, the merges, then the other special tokens, as in V3. Special tokens inside
    the texts are cut out, so no merge is spent on their spelling. Runs without whitespace are cut at `LONGEST_RUN`
    characters, since each merge costs the length of the words it stands in.

    Args:
        texts: what to learn from, read once.
        vocab_size: ids in all, special tokens included; texts too few for that many merges give a smaller vocabulary.

    Raises:
        ValueError: `vocab_size` has no room for the bytes and the special tokens.
    """
    smallest = BYTES + len(tokens.CONTROL) + len(tokens.MARKUP)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone need {smallest}")
    inner = tokenizers.Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(tokens.MARKUP),
        special_tokens=list(tokens.CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    special = re.compile("|".join(map(re.escape, tokens.CONTROL + tokens.MARKUP)))
    pieces = (part for text in texts for piece in special.split(text) for part in _cut_runs(piece))
    inner.train_from_iterator(pieces, trainer)
    inner.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens.MARKUP])
    return Tokenizer(inner)


def _cut_runs(text: str) -> Iterator[str]:
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def _to_bytes(text: str) -> bytes:
    """Undoes the byte-level alphabet, as its decoder does."""
    try:
        return bytes(_ALPHABET[letter] for letter in text)
    except KeyError:
        return text.encode()


def _alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2's): printable ones as they are, others from 256."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(BYTES + place): byte for place, byte in enumerate(others)}


_ALPHABET = _alphabet()
