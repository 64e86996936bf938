"""What can be said about the service. Imports no torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ziphius.model.formats import Weights
from ziphius.serve.wire.addresses import is_loopback

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@]+")


class ServeSettings(BaseModel):
    """Address, limits and prices of a service.

    - `host` and `port` to listen at; the model's `name` in requests.
    - `keys`: a file of API keys; without one, everybody on this machine may ask, and nobody else unless `open_to_all`.
    - `device` that runs the model: auto (a GPU where there is one), cpu, cuda, cuda:1. `weights` in memory: fp32, bf16,
      int8 or fp8 (half of bf16's memory, slightly rounded), or auto, as the folder has them.
    - `max_requests` and `max_samples` (a request has `n` for each prompt) are worked on or wait at once; the next is
      told to come back (429). Where several ask, by key or else by address, each has an equal part of them.
      `max_body_bytes`: 413 beyond.
    - `max_tokens`: of an answer whose request does not say.
    - `max_bodies_bytes`: of all bodies larger than 64 KiB that are read or worked on at once, half of it for one key
      (one address where there are no keys): 503 beyond.
    - `max_connections` at once, and `max_connections_per_address` (by default what the limit of open files leaves room
      for, 4,096 at most, and half of that): beyond, the connection that has asked for nothing longest is closed.
    - `header_seconds`: the longest a connection may take from its first byte to the end of its headers, or be silent
      before its first request; `idle_seconds`: the longest between two requests. `max_header_bytes`, `max_headers`
      (lines): 431 beyond.
    - `cors`: origins whose pages may use the API from a browser, such as https://chat.example; `*` means every page.
    - `request_seconds`: the longest a request may take in all. `read_seconds`: the longest its body may take to arrive.
      `write_seconds`: the longest a reader may leave what is sent to it unread.
    - `keep_alive_seconds` between the comments that keep a waiting stream open.
    - `drain_seconds` for answers under way when the server is asked to stop.
    - `dollars_per_hour` of the machine; `price_list`: whose list price the same tokens are compared with.
    - `log_prompts`: write prompts and answers into the log, too.
    - `adapters`: folders of adapters of the model, by the names that requests call them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    name: str = "ziphius"
    device: str = "auto"
    weights: Weights = "auto"
    keys: Path | None = None
    open_to_all: bool = False
    max_requests: int = Field(256, ge=1)
    max_samples: int = Field(2048, ge=1)
    max_body_bytes: int = Field(4 * 2**20, ge=1)
    max_bodies_bytes: int = Field(64 * 2**20, ge=1)
    max_connections: int | None = Field(None, ge=1)
    max_connections_per_address: int | None = Field(None, ge=1)
    max_header_bytes: int = Field(32 * 2**10, ge=1024)
    max_headers: int = Field(100, ge=8)
    cors: tuple[str, ...] = ()
    max_tokens: int = Field(4096, ge=1)
    request_seconds: float = Field(600.0, gt=0)
    header_seconds: float = Field(10.0, gt=0)
    idle_seconds: float = Field(30.0, gt=0)
    read_seconds: float = Field(30.0, gt=0)
    write_seconds: float = Field(60.0, gt=0)
    keep_alive_seconds: float = Field(10.0, gt=0)
    drain_seconds: float = Field(30.0, ge=0)
    dollars_per_hour: float = Field(0.0, ge=0)
    price_list: str | None = None
    log_prompts: bool = False
    adapters: dict[str, Path] = {}

    @field_validator("cors", mode="before")
    @classmethod
    def _is_one(cls, cors: Any) -> Any:
        return (cors,) if isinstance(cors, str) else cors

    @field_validator("cors")
    @classmethod
    def _are_origins(cls, cors: tuple[str, ...]) -> tuple[str, ...]:
        for origin in cors:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"--cors {origin}: an origin is a scheme and a host, such as https://chat.example or "
                    "http://localhost:3000, without a path; or * for all"
                )
        return cors

    @model_validator(mode="after")
    def _is_guarded(self) -> ServeSettings:
        if not is_loopback(self.host) and self.keys is None and not self.open_to_all:
            raise ValueError(
                f"{self.host} can be reached from other machines and there are no API keys: give --keys FILE "
                "(`ziphius key FILE NAME` makes one), or say --open-to-all"
            )
        return self


def named_folders(pairs: Sequence[str]) -> dict[str, Path]:
    """`name=FOLDER` pairs of the command line. Raises ValueError for one of another form, or a name given twice."""
    found: dict[str, Path] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name or not folder or name in found:
            raise ValueError(f"--adapter {pair}: write it as name=FOLDER, each with a name of its own")
        found[name] = Path(folder)
    return found


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs of the command line; a value is read as TOML, and as a string where it is none."""
    table: dict[str, Any] = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found or not key.strip():
            raise ValueError(f"--set {pair}: write it as key=value, for instance max_requests=64")
        try:
            table[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[key.strip()] = text.strip()
    return table
