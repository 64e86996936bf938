"""A turn in the form of a response."""

from __future__ import annotations

import time

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.reply import TokenLogprob
from ziphius.serve.contracts.responses.reply import (
    FunctionCall,
    IncompleteDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Status,
    SummaryText,
)
from ziphius.serve.contracts.responses.request import ResponsesRequest
from ziphius.serve.dialogue.deltas import Piece
from ziphius.serve.endpoints.answer import TokenLog
from ziphius.serve.endpoints.logprobs import token_logprobs
from ziphius.serve.endpoints.turn import Turn


class Reply:
    """What was said so far as items, in the order in which it was said, and the response that holds them."""

    def __init__(self, turn: Turn, asked: ResponsesRequest) -> None:
        self.turn, self.asked, self._created = turn, asked, int(time.time())
        [self._parser], [self._choice] = turn.parsers, turn.answer.choices
        self._hex = turn.name.removeprefix("resp_")

    @property
    def pieces(self) -> list[Piece]:
        """One an item. A turn that ended without an answer and without a call has given an empty answer."""
        pieces, reason = self._parser.pieces, self._choice.finish_reason
        silent = all(piece.part == "reasoning" for piece in pieces)
        return [*pieces, Piece("content")] if silent and reason not in (None, "length") else pieces

    @property
    def cut_off(self) -> bool:
        """Whether the last item is not whole."""
        return self._choice.finish_reason == "length"

    def item(self, place: int, status: Status) -> OutputItem:
        """The item in that place: empty while it is `in_progress`, as it is announced."""
        piece = self.pieces[place]
        text = "" if status == "in_progress" else piece.text
        if piece.part == "reasoning":
            return ReasoningItem(
                id=self.item_id(place),
                status=status,
                content=[ReasoningText(text=text)] if text else [],
                summary=[SummaryText(text=text)] if text and self.asked.with_summary else [],
            )
        if piece.call is not None:
            call = piece.call
            return FunctionCall(
                id=self.item_id(place), status=status, call_id=call.id or "", name=call.name or "", arguments=text
            )
        content = [] if status == "in_progress" else [OutputText(text=text, logprobs=self.logprobs(self.logs(place)))]
        return OutputMessage(id=self.item_id(place), status=status, content=content)

    def item_id(self, place: int) -> str:
        kind = {"reasoning": "rs", "content": "msg", "call": "fc"}[self.pieces[place].part]
        return f"{kind}_{self._hex}{place:04x}"

    def logs(self, place: int, since: int = 0) -> list[TokenLog]:
        """Those of the tokens of the message in that place, from the turn's log number `since` on."""
        calls = sum(piece.call is not None for piece in self.pieces[:place])
        return [log for log in self._choice.logs[since:] if log.calls == calls]

    @property
    def logged(self) -> int:
        """How many logs the turn has."""
        return len(self._choice.logs)

    def logprobs(self, logs: list[TokenLog]) -> list[TokenLogprob]:
        return token_logprobs(self.turn.service.tokenizer, logs, "content")

    def begun(self) -> ResponseObject:
        """The response before anything is said."""
        asked, held = self.asked, self.turn.request.settings
        text = asked.text.format if asked.text is not None else None
        choice = asked.tool_choice
        effort = asked.reasoning and asked.reasoning.effort
        summary = asked.reasoning and (asked.reasoning.summary or asked.reasoning.generate_summary)
        return ResponseObject(
            id=self.turn.name,
            created_at=self._created,
            status="in_progress",
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            metadata=asked.metadata or {},
            model=asked.model,
            output=[],
            parallel_tool_calls=asked.parallel_tool_calls is not False,
            prompt_cache_key=asked.prompt_cache_key,
            reasoning={"effort": effort, "summary": summary},
            safety_identifier=asked.safety_identifier,
            temperature=held.temperature,
            text={"format": text.model_dump(by_alias=True) if text is not None else {"type": "text"}},
            tool_choice=(choice if isinstance(choice, str) else choice.model_dump()) if choice else "auto",
            tools=[tool.model_dump() for tool in asked.tools or []],
            top_logprobs=asked.top_logprobs or 0,
            top_p=held.top_p,
            user=asked.user,
        )

    def ended(self) -> ResponseObject:
        """The response once all is said. What was written is remembered for the next turn."""
        self.turn.remember()
        last = len(self.pieces) - 1
        output = [self.item(place, self.status(place)) for place in range(last + 1)]
        return self.begun().model_copy(
            update={
                "status": "incomplete" if self.cut_off else "completed",
                "incomplete_details": IncompleteDetails(reason="max_output_tokens") if self.cut_off else None,
                "completed_at": None if self.cut_off else int(time.time()),
                "output": output,
                "usage": ResponseUsage.of(self.turn.answer.usage),
            }
        )

    def status(self, place: int) -> Status:
        """That of an item to which nothing is added any more."""
        return "incomplete" if self.cut_off and place == len(self.pieces) - 1 else "completed"

    def failed(self, error: ApiError) -> ResponseObject:
        """The response that broke off, with what was said."""
        places = range(len(self.pieces))
        output = [self.item(place, "incomplete" if place == places[-1] else "completed") for place in places]
        failure = ResponseError(code="server_error", message=error.message)
        return self.begun().model_copy(update={"status": "failed", "error": failure, "output": output})
