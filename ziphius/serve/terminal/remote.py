"""Answers from a service that speaks the API: this one, or any that is compatible with it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from ziphius.serve.terminal.source import Kind


class Remote:
    """A `Source`: the first model that the service lists."""

    def __init__(self, address: str, settings: dict[str, Any], api_key: str | None) -> None:
        self._base = address.rstrip("/").removesuffix("/v1") + "/v1"
        self._settings, self._key = settings, api_key
        with self._open("/models", None) as response:
            listed = json.load(response)["data"]
        if not listed:
            raise ValueError(f"{address}: the service lists no model")
        self._model = listed[0]["id"]
        self.what = f"{self._model} at {address}"

    def reply(self, messages: list[dict[str, str]], thinking: bool) -> Iterator[tuple[Kind, str]]:
        body = {"model": self._model, "messages": messages, "stream": True} | self._settings
        if not thinking:
            body["thinking"] = {"type": "disabled"}
        began, usage, reason = time.perf_counter(), None, None
        with self._open("/chat/completions", body) as response:  # closing the connection stops the work
            for line in response:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                chunk = json.loads(line[len(b"data: ") :])
                if "error" in chunk:
                    raise ValueError(chunk["error"]["message"])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    reason = choice["finish_reason"] or reason
                    if choice["delta"].get("reasoning_content"):
                        yield "reasoning", choice["delta"]["reasoning_content"]
                    if choice["delta"].get("content"):
                        yield "content", choice["delta"]["content"]
        if reason == "length":
            yield "note", "(cut off; --max-new-tokens allows more)"
        if usage is not None:
            tokens = usage["completion_tokens"]
            price = usage.get("ziphius", {}).get("dollars")
            cost = f", ${price:.6f}" if price else ""
            yield "note", f"{tokens} tokens, {tokens / (time.perf_counter() - began):,.0f} a second{cost}"

    def _open(self, path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(self._base + path, json.dumps(body).encode() if body is not None else None)
        request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{self._base}{path} answers {error.code}: {_reason(error)}") from None
        except OSError as error:
            raise ValueError(f"{self._base}{path} cannot be reached: {getattr(error, 'reason', error)}") from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
