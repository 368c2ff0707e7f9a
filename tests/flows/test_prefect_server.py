"""What stands in front of Prefect's own server."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import Response

from deployments.prefect_server import ResumesPatiently


class Locked(Exception):
    """Stands for the database that is locked."""


class Busy:
    """Fails so many times, for which Starlette answers 503 as in Prefect's server; remembers the bodies it was sent."""

    def __init__(self, times: int) -> None:
        self.times, self.bodies = times, list[bytes]()
        self.app = ServerErrorMiddleware(self._route, handler=self._busy)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        if len(self.bodies) <= self.times:
            raise Locked
        await Response()(scope, receive, send)

    async def _busy(self, request: Any, error: Exception) -> Response:
        return Response(status_code=503)


def status_of(app: Any, path: str) -> int:
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"form"}

    async def send(message: Any) -> None:
        told.append(message)

    # In a thread: a browser test before this one leaves an event loop in the main one.
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, app(scope, receive, send)).result()
    assert len(told) == 2
    return int(told[0]["status"])


def test_a_signature_is_sent_again_until_the_server_takes_it() -> None:
    server = Busy(3)

    assert status_of(ResumesPatiently(server, wait_s=0.0), "/api/flow_runs/1/resume") == 200
    assert server.bodies == [b"form"] * 4


def test_a_server_that_stays_busy_says_so_in_the_end() -> None:
    server = Busy(99)

    assert status_of(ResumesPatiently(server, tries=5, wait_s=0.0), "/api/flow_runs/1/resume") == 503
    assert len(server.bodies) == 5


def test_nothing_else_is_sent_twice() -> None:
    server = Busy(1)

    with pytest.raises(Locked):
        status_of(ResumesPatiently(server, wait_s=0.0), "/api/flow_runs/1/set_state")
    assert len(server.bodies) == 1


def test_an_error_without_an_answer_is_not_hidden() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no answer was begun")

    with pytest.raises(RuntimeError, match="no answer was begun"):
        status_of(ResumesPatiently(broken), "/api/flow_runs/1/resume")
