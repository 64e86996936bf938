"""The tokenizer of a model folder: text ↔ token ids, chat template, special tokens. New ones have V3's form."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from ziphius.text import tokens
from ziphius.text.chat import SWITCHES, knows, render_spans
from ziphius.text.dialogue import training_samples
from ziphius.text.folder import Files, read_files, write_files
from ziphius.text.plain import Breaker
from ziphius.text.special import control_spellings, find_specials
from ziphius.text.spelling import BYTES, spelled_bytes
from ziphius.text.template import CHAT_TEMPLATE, OPENS_THINKING
from ziphius.text.thinking import ThinkingMarks
from ziphius.text.turns import Ends, Opened, find_ends, opened, set_thinking

# V3's tokenizer.json cuts text three times before the bytes are merged: digits by threes, runs of Chinese and Japanese,
# then words, marks and whitespace. Source: the published file, as llama.cpp's `deepseek-v3` pre-tokenizer restates it.
SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
LONGEST_RUN = 256  # characters of a text in training that no whitespace parts
_LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)")


class Tokenizer:
    """Text ↔ token ids, with a folder's special tokens and chat template.

    Encoding recognises the special tokens wherever they stand in the text; it never adds one by itself.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, chat_template: str | None = CHAT_TEMPLATE, files: Files | None = None
    ) -> None:
        """Wraps a `tokenizers.Tokenizer`; `files` is what stands beside it in its folder, DeepSeek's by default.

        Without a chat template there are completions and no chat. ValueError where no token is known that ends a text.
        """
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner
        self._files = files if files is not None else Files(_own_config(inner))
        self._specials = find_specials(
            inner, self._files.config, self._files.named, self._files.generation, self._files.model
        )
        self.chat_template = chat_template

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Opens a folder with a `tokenizer.json` of any kind.

        The special tokens are `find_specials`'s. The chat template is the folder's own: `chat_template.jinja`, or what
        `tokenizer_config.json` holds, of several the one named "default", and "tool_use" where tools are given. A
        folder with DeepSeek's turn tokens and no template gets `CHAT_TEMPLATE`; another has none.

        Raises:
            FileNotFoundError: `tokenizer.json` is missing.
            ValueError: a file that does not parse, or a folder that names no end token.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: give a folder that Tokenizer.save wrote, or any with a tokenizer.json"
            )
        files = read_files(folder)
        try:
            inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
            deepseek = all(inner.token_to_id(token) is not None for token in (tokens.USER, tokens.ASSISTANT))
            return cls(inner, files.templates.get("default", CHAT_TEMPLATE if deepseek else None), files)
        except Exception as error:  # tokenizers raises bare Exception on a file that it cannot read
            raise ValueError(f"{path} cannot be used: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json` (chat template inside), each whole or not at all.

        What an opened folder's own files say is kept; `special_tokens_map.json` is written where there was one.
        """
        templates = {name: text for name, text in self._files.templates.items() if name != "default"}
        if self.chat_template is not None:
            templates = {"default": self.chat_template, **templates}
        write_files(Path(folder), self.inner.to_str(pretty=True), replace(self._files, templates=templates))

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return self.encode_batch([text])[0]  # thrice as fast as one by itself, and other threads run meanwhile

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_more(self, text: str) -> list[int]:
        """The ids of a text that goes on from another: without the space that SentencePiece puts before a text."""
        if not self._puts_space:
            return self.encode(text)
        lead = self.encode("\n")
        return self.encode("\n" + text)[len(lead) :]

    @cached_property
    def _puts_space(self) -> bool:
        return self.encode("\n" + "a") != self.encode("\n") + self.encode("a")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD. Skipping drops what is marked special only."""
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
    def breaker(self) -> Breaker:
        """Makes the spelling of a control token text."""
        return Breaker(control_spellings(self.inner))

    @cached_property
    def _bytes(self) -> list[bytes]:
        return spelled_bytes(self.inner)

    # --- chat --------------------------------------------------------------------------------------------------------

    def template(self, tools: object = None) -> str | None:
        """The chat template, of several the one for what is asked, if there is one."""
        return self._files.templates.get("tool_use", self.chat_template) if tools else self.chat_template

    def template_for(self, tools: object) -> str:
        """As `template`; ValueError where the folder has none."""
        template = self.template(tools)
        if template is None:
            raise ValueError(
                "this model has no chat template, so it completes texts and holds no conversations; "
                "put a chat_template.jinja into its folder"
            )
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = True,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, beginning with bos where the template has it so; see `render_chat`."""
        return self.render_spans(messages, thinking, tools, add_generation_prompt)[0]

    def render_spans(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where the template's own tags say that the model writes; see `render_spans`
        of `chat`."""
        return render_spans(
            self.template_for(tools),
            messages,
            bos_token=self._spelling(self._specials.bos),
            eos_token=self._spelling(self._specials.eos),
            thinking=thinking,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def open_turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Opened:
        """The prompt of a conversation that awaits the answer.

        With `thinking` a block is open at its end, or the model opens one itself where the template has a switch for
        thinking and does not do so; with False a block is closed or there is none; None leaves it to the template.
        """
        template = self.template_for(tools)
        told = self.render(messages, thinking, add_generation_prompt=False, tools=tools)
        turn = opened(told, self.render(messages, thinking, tools=tools))
        return set_thinking(turn, thinking, any(knows(template, name) for name in SWITCHES))

    def prompt_ids(self, question: str, thinking: bool = True) -> list[int]:
        """The ids of a conversation that asks one question and awaits the answer."""
        return self.encode(self.open_turn([{"role": "user", "content": question}], thinking).text)

    def render_training(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
    ) -> list[tuple[list[int], list[float]]]:
        """A conversation as samples to learn from: token ids, and a weight each: 1 for what the assistant says, the end
        of its turn included, 0 for the rest.

        One sample where the template only adds to what it has written, as most do. One a turn of the assistant where
        it writes earlier turns anew (R1, V3.1, Qwen3 and ours leave out their thinking), each trained on its last turn,
        so that every answer is learnt behind just what will stand before it.

        Args:
            messages: as `render`'s. An assistant's thinking stands in `reasoning_content`, or in its content before
                `</think>`. Control tokens that a message spells are text.
            tools: as `render`'s.
            thinking: None: an answer thinks where its message does; the prompt of one that does not closes the
                thinking, where it can. False leaves all thinking out; True trains an empty one where there is none.

        Raises:
            ValueError: no assistant message, or one that the template refuses or cannot be told from its prompt.
        """
        return training_samples(self, messages, tools, thinking)

    @cached_property
    def thinking(self) -> ThinkingMarks:
        """The marks of thinking in this vocabulary: tokens of their own, or spelt in ordinary ones."""
        think, end = self.inner.token_to_id(tokens.THINK), self.inner.token_to_id(tokens.END_THINK)
        if think is not None and end is not None:
            return ThinkingMarks([think], [end], self.token_bytes)
        closing = self.encode_more(f"\n{tokens.END_THINK}\n\n")
        return ThinkingMarks(self.encode_more(tokens.THINK), closing, self.token_bytes)

    @property
    def can_think(self) -> bool:
        """Whether this model is known to think: it has tokens for it, or its chat template speaks of it."""
        template = self.chat_template or ""
        return self.thinking.are_tokens or tokens.THINK in template or tokens.END_THINK in template

    def made_to_think(self) -> "Tokenizer":
        """A tokenizer for a model that learns to think: where the chat template says nothing of thinking, its prompts
        now open a block, here and in every other program. Itself where the model is known to think already."""
        if self.can_think or self.chat_template is None:
            return self
        return Tokenizer(self.inner, self.chat_template + OPENS_THINKING, self._files)

    # --- what tokens there are ---------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    @cached_property
    def digest(self) -> str:
        """A short name of what the tokenizer does: equal for equal tokenizers with equal chat templates."""
        return blake2b((self.inner.to_str() + (self.chat_template or "")).encode(), digest_size=8).hexdigest()

    @property
    def bos_id(self) -> int:
        """ValueError where texts have no beginning of their own, as Qwen's; `begin` is for those who need not care."""
        if self._specials.bos is None:
            raise ValueError("this tokenizer has no bos token")
        return self._specials.bos

    @cached_property
    def begin(self) -> list[int]:
        """What a text to be continued begins with: bos where the folder has it so, else nothing.

        DeepSeek's texts do. Of others those whose tokenizer puts bos there itself (`add_bos_token`, or its
        post-processor): a bos may be named that only chats begin with.
        """
        bos = self._specials.bos
        return [bos] if bos is not None and (self.adds_bos or self._spelling(bos) == tokens.BOS) else []

    @property
    def has_bos(self) -> bool:
        return self._specials.bos is not None

    @property
    def adds_bos(self) -> bool:
        """Whether the folder's tokenizer puts bos before a text by itself, as other programs open it."""
        return self.has_bos and bool(self.config.get("add_bos_token") or self.inner.encode("").ids == [self.bos_id])

    @property
    def config(self) -> dict[str, Any]:
        """The folder's tokenizer_config.json, without its chat template."""
        return self._files.config

    @property
    def eos_id(self) -> int:
        """The token that ends a text, the one that training writes."""
        return self._specials.eos

    @cached_property
    def eos_ids(self) -> list[int]:
        """All tokens that end an answer, `eos_id` first: also those of generation_config.json, and of a chat's turn."""
        turn = [] if self.turn_ends.end is None else [self.turn_ends.end]
        return list(dict.fromkeys((*self._specials.ends, *turn)))

    @cached_property
    def turn_ends(self) -> Ends:
        """What ends the assistant's turn in the chat template, and what opens the next one."""
        if self.chat_template is None:
            return Ends(None, None)
        return find_ends(lambda messages: self.render(messages, None, False), self.encode, self.added_ids)

    @property
    def next_turn(self) -> list[int]:
        """Tokens by which a model that goes on with the user's next message shows that its own turn has ended."""
        return [] if self.turn_ends.next is None else [self.turn_ends.next]

    @cached_property
    def end_spellings(self) -> list[str]:
        """How the tokens that end a turn are spelt, the template's own first."""
        first = self.eos_id if self.turn_ends.end is None else self.turn_ends.end
        return [self._spelling(id) for id in dict.fromkeys((first, *self.eos_ids))]

    @property
    def pad_id(self) -> int:
        """Fills up a batch; eos where there is no token for it."""
        return self._specials.pad

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

    def _spelling(self, id: int | None) -> str:
        return "" if id is None else self.inner.id_to_token(id) or ""


def _own_config(inner: tokenizers.Tokenizer) -> dict[str, Any]:
    """The tokenizer_config.json of a tokenizer made here."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens.BOS,
        "eos_token": tokens.EOS,
        "pad_token": tokens.PAD if inner.token_to_id(tokens.PAD) is not None else tokens.EOS,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }


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
