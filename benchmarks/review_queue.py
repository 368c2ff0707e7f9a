"""How fast "decide and next" is with 50 annotators on a long queue, on SQLite and on PostgreSQL.

    python -m benchmarks.review_queue [--records 100000 1000000] [--annotators 50] [--seconds 20] [--think 1.0]

Two loads, because they answer two questions. *Paced*: every annotator thinks for `--think` seconds on average,
as a fast person does; p50 and p99 are what people wait. *Flat out*: nobody thinks; decisions per second is the
limit. Several numbers after `--records` are several queues, one after the other. One decision is one transaction with
its audit entry (on SQLite it may share the transaction of others that wait); "and next" reserves the next records when
fewer than four are ready, as the page does. p50 and p99 hold both, one after the other. The page sends neither of the
two before it shows the next record, and reserves while the person reads: `saved` and `reserved` tell them apart.
"""

import argparse
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from labeling.database import accounts, chain, queue, rounds
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from schemas.review import DecisionIn, Purpose, QueueItem, Role, RoundState, Seen

AHEAD = 8


@contextmanager
def postgresql() -> Iterator[str | None]:
    """A private cluster with its durable defaults; None when the server is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="countersign-bench-"))
    user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")
    binaries = found[-1].parent
    initdb = [
        binaries / "initdb",
        "-D",
        folder / "data",
        "-U",
        "bench",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)
    server = subprocess.Popen(
        [binaries / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-c", "max_connections=200"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **user,
    )
    try:
        while (
            subprocess.run([binaries / "pg_isready", "-h", str(folder)], capture_output=True).returncode != 0
        ):
            time.sleep(0.1)
        yield f"postgresql://bench@/postgres?host={folder}"
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def fill(db: Database, records: int, annotators: int) -> list[str]:
    """A round of `records`, a fifth of them for two people; returns the annotators' ids."""
    people = []
    for number in range(annotators):
        token = accounts.invite(db, Role.ANNOTATOR, f"p{number}", accounts.OPERATOR)
        people.append(accounts.accept_invitation(db, token, f"p{number}", "a long password").id)
    rounds.open_round(db, 1, state=RoundState.OPEN, rehearsal=True, actor="benchmark")
    chance = Random(1)
    text = (
        "Hi, I ran out of my blood pressure pills on Friday and feel dizzy since. Can Dr. Osei renew them? "
        * 3
    )
    for start in range(0, records, 20_000):
        items = [
            QueueItem(
                record_id=f"r{number}",
                purpose=Purpose.SELECTED,
                seen=Seen.ASSISTED,
                priority=chance.random(),
                overlap=2 if number % 5 == 0 else 1,
            )
            for number in range(start, min(start + 20_000, records))
        ]
        shown = {"value": "Refill", "confidence": 0.7}
        rounds.add_items(db, 1, items, {item.record_id: (text, shown) for item in items}, "benchmark")
    return people


@dataclass(frozen=True)
class Wait:
    """Seconds; `reserved` is None where enough records were ready."""

    saved: float
    reserved: float | None


class Person(threading.Thread):
    """One annotator; `waits` are the seconds until a decision was saved and, where it was time, the next reserved."""

    def __init__(self, act: Callable[[], Wait | None], think_s: float, until: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._act, self._think_s, self._until = act, think_s, until
        self._chance = Random(seed)
        self.waits: list[Wait] = []

    def run(self) -> None:
        time.sleep(self._chance.uniform(0, self._think_s))
        while time.monotonic() < self._until:
            wait = self._act()
            if wait is None:
                return
            self.waits.append(wait)
            if self._think_s:
                time.sleep(self._chance.uniform(0.5, 1.5) * self._think_s)


def by_library(db: Database, account: str) -> Callable[[], Wait | None]:
    ready: list[queue.Assignment] = []

    def act() -> Wait | None:
        if not ready:
            ready.extend(queue.prefetch(db, account, 1, count=AHEAD))
        if not ready:
            return None
        held = ready.pop(0)
        begun = time.perf_counter()
        queue.decide(
            db,
            account,
            decision(held.assignment_id, held.version, secrets.token_hex(8)),
            check_value=legal,
        )
        saved = time.perf_counter()
        if len(ready) >= AHEAD / 2:
            return Wait(saved - begun, None)
        known = {one.assignment_id for one in ready}
        more = queue.prefetch(db, account, 1, count=AHEAD)
        ready.extend(one for one in more if one.assignment_id not in known)
        return Wait(saved - begun, time.perf_counter() - saved)

    return act


def legal(value: Any, text: str) -> None:
    """The benchmark's values are."""


def decision(assignment_id: int, version: int, key: str) -> DecisionIn:
    return DecisionIn(
        assignment_id=assignment_id,
        idempotency_key=key,
        expected_version=version,
        action="accept",
        value="Refill",
        seconds=3,
    )


def measure(db: Database, people: list[str], *, think_s: float, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds
    acts = [by_library(db, person) for person in people]
    threads = [Person(act, think_s, until, seed) for seed, act in enumerate(acts)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    waits = [wait for thread in threads for wait in thread.waits]
    return {
        "decisions": len(waits),
        "decisions_per_s": round(len(waits) / took, 1),
        **quantiles([wait.saved + (wait.reserved or 0.0) for wait in waits]),
        "saved": quantiles([wait.saved for wait in waits]),
        "reserved": quantiles([wait.reserved for wait in waits if wait.reserved is not None]),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 1),
        "slowest_ms": round(ordered[-1] * 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--think", type=float, default=1.0)
    chosen = parser.parse_args()
    results: dict[str, Any] = {
        "annotators": chosen.annotators,
        "think_s": chosen.think,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "records": {str(records): on_both(records, chosen) for records in chosen.records},
    }
    print(json.dumps(results, indent=2))


def on_both(records: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Both loads on a queue of so many records, on SQLite and on PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, open_database(ProjectFolder(Path(folder))) as db:
        results: dict[str, Any] = {"sqlite": on_queue(db, records, chosen)}
    with (
        postgresql() as url,
        tempfile.TemporaryDirectory() as folder,
    ):
        if url is None:
            return {**results, "postgresql": "not installed"}
        with open_database(ProjectFolder(Path(folder)), url) as db:
            return {**results, "postgresql": on_queue(db, records, chosen)}


def on_queue(db: Database, records: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Fills the queue, then measures."""
    begun = time.monotonic()
    people = fill(db, records, chosen.annotators)
    filled = time.monotonic() - begun
    paced = measure(db, people, think_s=chosen.think, seconds=chosen.seconds)
    flat_out = measure(db, people, think_s=0.0, seconds=chosen.seconds)
    problems = chain.verify_chain(db)
    return {
        "fill_s": round(filled, 1),
        "paced": paced,
        "flat_out": flat_out,
        "chain": "whole" if not problems else problems[:3],
    }


if __name__ == "__main__":
    main()
