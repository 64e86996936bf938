"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

from ziphius.engine.request import EngineStats, Request, Update
from ziphius.engine.settings import EngineSettings
from ziphius.model.transformer import Transformer
from ziphius.text.tokenizer import Tokenizer


class Engine:
    """Samples from a model for many requests at once. Not thread-safe: one thread calls it.

    `tokenizer` may be None where no request has stop strings, a thinking budget or a constraint. The model's weights
    are used in place; who changes them calls `weights_changed`.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer | None, settings: EngineSettings | None = None) -> None:
        raise NotImplementedError

    def add(self, request: Request) -> int:
        """Queue a request; its id. Raises ValueError for what cannot be served."""
        raise NotImplementedError

    def step(self) -> list[Update]:
        """One pass of the network for what is running, and what it brought."""
        raise NotImplementedError

    def cancel(self, id: int) -> None:
        """End a request; its blocks are free at once. The next step's updates say so. Unknown ids are let be."""
        raise NotImplementedError

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def weights_changed(self) -> None:
        """Forget what was computed with the old weights; running samples go on with the new ones."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """A name of the present weights, `fp_` and 10 hex digits."""
        raise NotImplementedError
