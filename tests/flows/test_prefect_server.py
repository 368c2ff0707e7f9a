"""What stands in front of Prefect's own server."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deployments.prefect_server import ResumesPatiently


class Busy:
    """Answers 503 so many times, then 200; remembers the bodies it was sent."""

    def __init__(self, times: int) -> None:
        self.times, self.bodies = times, list[bytes]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        status = 503 if len(self.bodies) <= self.times else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def status_of(app: Any, path: str) -> int:
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"form"}

    async def send(message: Any) -> None:
        told.append(message)

    # In a thread: a browser test before this one leaves an event loop in the main one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(
            asyncio.run, app({"type": "http", "method": "POST", "path": path}, receive, send)
        ).result()
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

    assert status_of(ResumesPatiently(server, wait_s=0.0), "/api/flow_runs/1/set_state") == 503
    assert len(server.bodies) == 1
