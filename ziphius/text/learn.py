"""Learning a tokenizer from texts: a byte-level BPE that cuts them as V3's does."""

import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from ziphius.text import tokens
from ziphius.text.spelling import BYTES
from ziphius.text.tokenizer import Tokenizer

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
