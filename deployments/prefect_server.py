"""Runs the Prefect server behind a content-security policy that keeps its page from asking other hosts.

The offline UI tries an analytics host on every page load whatever is set; the policy blocks it in the browser.
"""

import argparse
import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from labeling.listening import take_port
from labeling.shared_use import unused
from schemas.errors import LabelingError

LOOK_EVERY_S = 1.0
STOP_TIMEOUT_S = 8.0

# The UI is a bundle that compiles templates at run time, hence the two unsafe sources; connections stay at home.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws://127.0.0.1:* http://127.0.0.1:*; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)


class WithPolicy:
    """ASGI wrapper that adds the policy to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


class ResumesPatiently:
    """ASGI wrapper that sends a signature again while the server answers 503: its page would leave that to the lead."""

    def __init__(self, app: Any, *, tries: int = 20, wait_s: float = 1.0) -> None:
        self.app, self._tries, self._wait_s = app, tries, wait_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/resume"):
            await self.app(scope, receive, send)
            return
        asked = [await receive()]
        while asked[-1].get("more_body"):
            asked.append(await receive())
        answer: list[Any] = []
        for left in reversed(range(self._tries)):
            answer = await self._answer(scope, asked, receive)
            if left == 0 or answer[0].get("status") != 503:
                break
            await asyncio.sleep(self._wait_s)
        for message in answer:
            await send(message)

    async def _answer(self, scope: Any, asked: list[Any], receive: Any) -> list[Any]:
        told: list[Any] = []
        again = iter(asked)

        async def receive_again() -> Any:
            message = next(again, None)
            return await receive() if message is None else message

        async def keep(message: Any) -> None:
            told.append(message)

        try:
            await self.app(dict(scope), receive_again, keep)
        except Exception:
            # Starlette raises again what it has answered for; passed on, a 503 would reach the lead as a bare 500.
            if not told:
                raise
        return told


def _end_when_unused(users: Path) -> None:
    while not unused(users):
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT_S)
    os._exit(1)


def main() -> None:
    """Starts the server on loopback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--users", type=Path, help="end when nobody holds a shared lock on this file")
    options = parser.parse_args()
    try:
        taken = take_port("127.0.0.1", options.port)
    except LabelingError as error:
        sys.exit(str(error))
    if options.users is not None:
        threading.Thread(target=_end_when_unused, args=(options.users,), daemon=True).start()
    from prefect.server.api.server import create_app

    app = WithPolicy(ResumesPatiently(create_app()))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    )
    with suppress(KeyboardInterrupt):  # uvicorn passes the signal on once it has ended
        server.run(sockets=[taken])
    sys.exit(0 if server.started else 1)


if __name__ == "__main__":
    main()
