"""The chat page and its bundled packages. Nothing is fetched from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(str(files("ziphius.serve").joinpath("page_files")))
_HEADERS = {
    # styles in attributes are what the typesetting of formulae consists of; scripts come from here alone
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "worker-src 'self'; font-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks whether a file is still the same: an old one beside new ones is none
}


class _PageFiles(StaticFiles):
    """The files with the page's headers: a worker obeys the policy that its own script came with."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def mount(app: FastAPI) -> None:
    """The page at `/`, its files under `/page/`."""

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        return FileResponse(FILES / "index.html", headers=_HEADERS)

    app.mount("/page", _PageFiles(directory=FILES), name="page")
