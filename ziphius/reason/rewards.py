"""The rule-based rewards of DeepSeek-R1: accuracy, format and language consistency. No reward model.

Source: DeepSeek-R1 (arXiv:2501.12948; Nature 645, 2025), section "Reward design": R1-Zero adds accuracy and format with
equal weights; R1's first RL stage adds the share of words of the thinking that are in the target language.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ziphius.tasks import Family, Problem, Verdict, extract_answer

OPEN, CLOSE = "<think>", "</think>"
WORD = re.compile(r"[^\W\d_]+")

# The scripts each language is written in, as Unicode names them. Languages that share a script are not told apart.
SCRIPTS = {
    **{code: {"LATIN"} for code in ("en", "de", "es", "fr", "it", "pt")},
    **{code: {"CYRILLIC"} for code in ("bg", "ru", "uk")},
    "ar": {"ARABIC"},
    "el": {"GREEK"},
    "he": {"HEBREW"},
    "hi": {"DEVANAGARI"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA"},
    "ko": {"HANGUL"},
    "th": {"THAI"},
    "zh": {"CJK"},
}
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI"}  # written without spaces: each character counts as a word


class RewardWeights(BaseModel):
    """What each reward weighs in the total. The defaults are R1-Zero's; `language = 1` adds R1's first RL stage's.

    target_language: a key of `SCRIPTS`. partial_credit: accuracy is the checker's own score, parts included; left off,
    only a fully right answer earns 1, since many checkers pay for "134" when "34" is right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: float = Field(1.0, ge=0, allow_inf_nan=False)
    format: float = Field(1.0, ge=0, allow_inf_nan=False)
    language: float = Field(0.0, ge=0, allow_inf_nan=False)
    target_language: str = "en"
    partial_credit: bool = False

    @field_validator("target_language")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SCRIPTS:
            raise ValueError(f"target_language = {value!r} is not known; take one of {', '.join(sorted(SCRIPTS))}")
        return value

    @model_validator(mode="after")
    def _some(self) -> "RewardWeights":
        if not self.accuracy + self.format + self.language:
            raise ValueError("accuracy, format and language all weigh 0: nothing would be learned; raise one of them")
        return self


@dataclass(frozen=True)
class Reward:
    """The rewards of one completion, each in [0, 1], and their weighted sum. `accuracy` and with it `total` are None
    while undecided: the sample is left out, not counted as wrong."""

    total: float | None
    accuracy: float | None
    format: float
    language: float


class Sampled(NamedTuple):
    """A completion of a problem's prompt, without the prompt and its end token. finished: it ended by itself, not by
    the length limit; an answer that was cut off is no answer."""

    family: Family
    problem: Problem
    text: str
    finished: bool


def score(
    problem: Problem, family: Family, completion_text: str, finished: bool, thinking: bool, weights: RewardWeights
) -> Reward:
    """Rewards of one completion; see `score_all`."""
    return score_all([Sampled(family, problem, completion_text, finished)], thinking, weights)[0]


def score_all(samples: Sequence[Sampled], thinking: bool, weights: RewardWeights) -> list[Reward]:
    """Rewards of completions, all answers of a family judged in one batch.

    thinking: a completion is to think before it answers; else it is the answer alone, and the tags are an error.
    """
    parts = [split_completion(sample.text, thinking) for sample in samples]
    answers = [
        extract_answer(said if sample.finished else "") for sample, (_, said) in zip(samples, parts, strict=True)
    ]
    verdicts = _verdicts(samples, answers)
    rewards = []
    for sample, (thought, _), verdict in zip(samples, parts, verdicts, strict=True):
        accuracy = accuracy_reward(verdict, weights.partial_credit)
        form = format_reward(sample.text, sample.finished, thinking)
        language = language_reward(thought, weights.target_language)
        total = None
        if accuracy is not None:
            total = weights.accuracy * accuracy + weights.format * form + weights.language * language
        rewards.append(Reward(total, accuracy, form, language))
    return rewards


def _verdicts(samples: Sequence[Sampled], answers: Sequence[str]) -> list[Verdict]:
    """The verdict on each answer; each family gets all of its own at once."""
    found = [Verdict(0.0, "no answer")] * len(samples)
    for family in {id(sample.family): sample.family for sample in samples}.values():
        places = [i for i, sample in enumerate(samples) if sample.family is family and answers[i]]
        verdicts = family.verify_all([(samples[i].problem, answers[i]) for i in places])
        for place, verdict in zip(places, verdicts, strict=True):
            found[place] = verdict
    return found


def split_completion(text: str, thinking: bool) -> tuple[str, str]:
    """The thinking and the answer's text, around the last `</think>`; without one there is no answer yet."""
    if not thinking:
        return "", text
    if CLOSE not in text:
        return text.removeprefix(OPEN), ""
    thought, _, answer = text.rpartition(CLOSE)
    return thought.removeprefix(OPEN), answer


def accuracy_reward(verdict: Verdict, partial_credit: bool = False) -> float | None:
    """1 for a right answer, 0 for a wrong one, None while undecided; with `partial_credit` the checker's own score."""
    if verdict.score is None or partial_credit:
        return verdict.score
    return float(bool(verdict.correct))


def format_reward(text: str, finished: bool, thinking: bool) -> float:
    """1 for thinking, one `</think>`, an answer and an end; a `<think>` may only open the text, as some templates leave
    that to the model. Without thinking: no tag, an answer and an end. Else 0."""
    _, answer = split_completion(text, thinking)
    tags = text.lstrip().removeprefix(OPEN).count(OPEN), text.count(CLOSE)
    in_order = tags == (0, 1) if thinking else OPEN not in text and CLOSE not in text
    return float(in_order and finished and bool(answer.strip()))


def language_reward(thought: str, target: str) -> float:
    """The share of words in the script of language `target`; 1 where there are none. Numbers and signs do not count."""
    words = WORD.findall(unicodedata.normalize("NFKC", thought))
    scripts = [script for word in words for script in _scripts(word)]
    return sum(script in SCRIPTS[target] for script in scripts) / len(scripts) if scripts else 1.0


def _scripts(word: str) -> list[str]:
    """The script of each word in a run of letters: a word ends where the script changes or has no spaces."""
    found: list[str] = []
    for letter in word:
        script = "LATIN" if letter.isascii() else unicodedata.name(letter, "UNKNOWN").split()[0]
        if not found or script != found[-1] or script in UNSPACED:
            found.append(script)
    return found
