"""A server for one page, on this machine only, that shows the picture of a spec and follows its files.

Who may ask: a browser on this machine that knows the token in the address. A page of another site knows it not; its
name that leads to this machine is a foreign Host; and what it posts bears its Origin. The page names a box or a
problem of what it shows, never a file or a command.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from composer.editor.watch_opener import Opener, OpenerError
from composer.editor.watch_state import Watch
from composer.errors import RefusedError

__all__ = ["PortError", "application", "listening", "serve"]

HOST = "127.0.0.1"
FIRST = 10.0  # seconds for which the page waits for the first picture
ALIVE_EVERY = 15.0  # seconds: a client that has died is noticed by what is written to it
LONGEST = 4096  # bytes of what a page asks for
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PortError(RefusedError):
    """A port that cannot be used."""


def listening(port: int) -> socket.socket:
    """A socket at ``port`` of this machine alone, 0: at any that is free. Raises PortError."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((HOST, port))
        server.listen()
    except OSError as error:
        server.close()
        raise PortError(
            f"port {port} cannot be used: {error.strerror}; leave out --port, and a free one is taken"
        ) from error
    return server


async def serve(
    watch: Watch, server: socket.socket, opener: Opener | None, announce: Callable[[str], None]
) -> None:
    """Show and follow until Ctrl-C. ``announce`` gets the address."""
    token = secrets.token_urlsafe(16)
    config = uvicorn.Config(
        application(watch, token, opener), log_level="warning", access_log=False, lifespan="off", ws="none",
        log_config=None,
        http="h11", loop="asyncio", server_header=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    address = f"http://{HOST}:{server.getsockname()[1]}/{token}/"
    host = _Server(config, watch, lambda: announce(address))
    following = asyncio.create_task(watch.follow())
    serving = asyncio.create_task(host.serve([server]))
    try:
        await asyncio.wait({following, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.stop()
        host.should_exit = True
        await serving
        await following


class _Server(uvicorn.Server):
    """uvicorn raises the signal again that has ended it; here Ctrl-C is the way to end, and no failure."""

    def __init__(self, config: uvicorn.Config, watch: Watch, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._watch = watch
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """It takes signals by now: who ends it on seeing the address ends it well."""
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._watch.stop()


def application(watch: Watch, token: str, opener: Opener | None = None) -> Starlette:
    """The page, its events, and the request to open a place, below ``/token/``."""
    site = _Site(watch, opener)
    return Starlette(
        routes=[
            Route(f"/{token}/", site.page),
            Route(f"/{token}/events", site.events),
            Route(f"/{token}/open", site.open, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
        ],
    )


class _Site:
    def __init__(self, watch: Watch, opener: Opener | None) -> None:
        self._watch = watch
        self._opener = opener
        self._page = files("composer.editor").joinpath("watch.html").read_text(encoding="utf-8")

    async def page(self, request: Request) -> Response:
        """The page with the present state in it."""
        await self._watch.newer_than(0, FIRST)
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        state = json.loads(self._watch.message(0)) | {"opens": self._opener is not None}
        data = json.dumps(state).replace("<", "\\u003c")  # only "<" could end a script element
        before, _, after = self._page.replace("NONCE", nonce).rpartition("/*state*/")
        headers = HEADERS | {"Content-Security-Policy": policy}
        return HTMLResponse(before + data + after, headers=headers)

    async def events(self, request: Request) -> Response:
        """The states that follow the one which the page has, each with its picture unless the page has that."""
        seen = request.headers.get("last-event-id") or request.query_params.get("seen", "")
        number, _, picture = seen.partition("-")
        lines = self._lines(_whole(number), _whole(picture))
        return StreamingResponse(lines, media_type="text/event-stream", headers=HEADERS)

    async def _lines(self, number: int, picture: int) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        while not self._watch.stopped.is_set():
            if await self._watch.newer_than(number, ALIVE_EVERY):
                text = self._watch.message(picture)
                number, picture = self._watch.number, self._watch.picture
                yield f"id: {number}-{picture}\ndata: {text}\n\n"
            else:
                yield ": still here\n\n"

    async def open(self, request: Request) -> Response:
        """Run the user's command at a box or a problem."""
        if request.headers.get("origin") != f"http://{request.headers.get('host')}":
            return PlainTextResponse("not from this page", 403, HEADERS)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST:
                return PlainTextResponse("too long", 413, HEADERS)
        place = self._watch.place(body)
        if place is None or self._opener is None:
            return PlainTextResponse("nothing to open", 404, HEADERS)
        try:
            await self._opener.open(place)
        except OpenerError as error:
            return PlainTextResponse(str(error), 500, HEADERS)
        return PlainTextResponse(f"opened {place}", headers=HEADERS)


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
