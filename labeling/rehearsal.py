"""Simulated annotators: they work through the review app's own HTTP interface and know nothing else.

What they answer comes from truth columns; with a set probability they err, towards another label drawn at random.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from schemas.errors import QueueError
from schemas.values import Value, canonical_json, content_hash

PREFETCH = 10


class SimulatedPerson:
    """One account of the review app, made from an invitation and worked by a program."""

    def __init__(self, url: str, *, name: str, invitation: str, password: str) -> None:
        self.name = name
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._password = password
        session = self._call(
            "POST", "/api/invitation", {"token": invitation, "name": name, "password": password}
        )
        self._http.headers["x-csrf-token"] = session["csrf"]

    def _call(self, method: str, route: str, body: object | None = None) -> Any:
        again = True
        while True:
            reply = self._http.request(method, route, json=body)
            if reply.status_code == 429:  # the app asks everybody to slow down, programs too
                time.sleep(float(reply.headers.get("retry-after", "1")))
                continue
            if reply.status_code == 401 and again:
                again = False
                self._log_in()
                continue
            if reply.status_code != 200:
                raise _refused(method, route, reply)
            return reply.json()

    def _log_in(self) -> None:
        """Sessions end after 30 idle minutes, and drafting labels between two rounds may take longer."""
        reply = self._http.post("/api/login", json={"name": self.name, "password": self._password})
        if reply.status_code != 200:
            raise _refused("POST", "/api/login", reply)
        self._http.headers["x-csrf-token"] = reply.json()["csrf"]

    def label_all(
        self,
        answer: Callable[[str], Value],
        *,
        seed: int,
        on_decision: Callable[[], None] | None = None,
    ) -> int:
        """Decides every record the queue hands out until it hands out no more; returns how many.

        Args:
            answer: What this person says about a record id.
            seed: Goes into the idempotency keys and nothing else.
            on_decision: Called after each durable decision.
        """
        count = 0
        while items := self._call("GET", f"/api/next?count={PREFETCH}")["items"]:
            for item in items:
                started = time.monotonic()
                value = answer(item["record_id"])
                suggestion = item.get("suggestion")
                same = suggestion is not None and canonical_json(suggestion["value"]) == canonical_json(value)
                self._call(
                    "POST",
                    "/api/decisions",
                    {
                        "assignment_id": item["assignment_id"],
                        "idempotency_key": self._key(seed, item["assignment_id"], item["version"]),
                        "expected_version": item["version"],
                        "action": "accept" if same else "correct",
                        "value": value,
                        "seconds": round(time.monotonic() - started, 6),
                    },
                )
                count += 1
                if on_decision is not None:
                    on_decision()
        return count

    def adjudicate_all(self, answer: Callable[[str], Value], *, seed: int) -> int:
        """Settles every open dispute; returns how many."""
        count = 0
        while disputes := self._call("GET", "/api/disputes")["disputes"]:
            for dispute in disputes:
                self._call(
                    "POST",
                    "/api/adjudications",
                    {
                        "round": dispute["round"],
                        "record_id": dispute["record_id"],
                        "value": answer(dispute["record_id"]),
                        "expected_version": dispute["version"],
                        "idempotency_key": self._key(seed, dispute["round"], dispute["record_id"]),
                    },
                )
                count += 1
        return count

    def _key(self, *parts: object) -> str:
        """The same decision sent again carries the same key, a different one never does."""
        return "sim-" + content_hash([self.name, *map(str, parts)])[:32]

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()


def _refused(method: str, route: str, reply: httpx.Response) -> QueueError:
    return QueueError(
        f"{method} {route}",
        found=f"HTTP {reply.status_code}: {reply.text[:300]}",
        expected="HTTP 200",
        next_step="Read the log of the review app.",
    )


def erring(
    truth: Mapping[str, Value], labels: Sequence[str], *, error_share: float, seed: int, name: str
) -> Callable[[str], Value]:
    """A person who says the truth but for a share of records, the same ones each time they are asked."""

    def answer(record_id: str) -> Value:
        value = truth[record_id]
        dice = random.Random(f"{seed}-{name}-{record_id}")
        if error_share and dice.random() < error_share and isinstance(value, str):
            return dice.choice([label for label in labels if label != value])
        return value

    return answer


def work_together(people: Sequence[tuple[SimulatedPerson, Callable[[str], Value]]], *, seed: int) -> int:
    """Everybody labels at once, until nobody gets a record any more; returns the number of decisions."""
    with ThreadPoolExecutor(len(people)) as pool:
        return sum(pool.map(lambda pair: pair[0].label_all(pair[1], seed=seed), people))
