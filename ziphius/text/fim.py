"""Fill-in-the-middle: a share of the documents is rearranged so that the model learns to write what stands between."""

import random
from typing import Any

from ziphius.text.corpora import load_rng, save_rng
from ziphius.text.tokens import FIM_BEGIN, FIM_END, FIM_HOLE


class FillInTheMiddle:
    """Rearranges a document, with probability `rate`, in the prefix-suffix-middle order.

    Source: DeepSeek-V3 report, section 4.1: `<|fim_begin|> prefix <|fim_hole|> suffix <|fim_end|> middle`, applied to
    whole documents before packing (which then adds bos and eos). The two cuts fall uniformly between characters.
    """

    def __init__(self, rate: float, seed: int) -> None:
        """ValueError: a rate outside [0, 1]."""
        if not 0 <= rate <= 1:
            raise ValueError(f"fim_rate {rate} is not a probability: give a number from 0 to 1 (DeepSeek-V3 used 0.1)")
        self.rate = rate
        self._rng = random.Random(seed)

    def __call__(self, document: str) -> str:
        """The document as it is, or its three parts with the FIM tokens spelled out between them."""
        if not self.rate or self._rng.random() >= self.rate:
            return document
        start, end = sorted((self._rng.randint(0, len(document)), self._rng.randint(0, len(document))))
        return f"{FIM_BEGIN}{document[:start]}{FIM_HOLE}{document[end:]}{FIM_END}{document[start:end]}"

    def state_dict(self) -> dict[str, Any]:
        return {"rng": save_rng(self._rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_rng(self._rng, state["rng"])
