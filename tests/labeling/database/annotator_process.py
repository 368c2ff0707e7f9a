"""An annotator in a process of its own, for tests that race or kill it.

Usage: annotator_process.py FOLDER URL|- ACCOUNT claim|decide TIMES. It waits for a line on stdin, then works;
after each committed act it prints "record_id assignment_id annotation_id" and flushes, as a server would
answer 200.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from labeling.database import queue
from labeling.database.connection import open_database
from labeling.paths import ProjectFolder
from schemas.errors import StorageError
from schemas.review import DecisionIn

TRIES = 3

Result = TypeVar("Result")


def told_to_try_again(act: Callable[[], Result]) -> Result:
    """SQLite gives the turns of two processes to whoever asks at the right moment; the page sends again, too."""
    for _ in range(TRIES - 1):
        try:
            return act()
        except StorageError as error:
            if "kept the database locked" not in error.found:
                raise
    return act()


def main(folder: str, url: str, account: str, what: str, times: str) -> None:
    with open_database(ProjectFolder(Path(folder)), None if url == "-" else url) as db:
        print("ready", flush=True)
        sys.stdin.readline()
        if what == "claim":
            for held in queue.prefetch(db, account, count=int(times)):
                print(held.record_id, held.assignment_id, "-", flush=True)
            return
        for number in range(int(times)):
            held = told_to_try_again(lambda: queue.claim(db, account))
            if held is None:
                return
            sent = DecisionIn(
                assignment_id=held.assignment_id,
                idempotency_key=f"{account}-{held.record_id}-{number}",
                expected_version=held.version,
                action="correct",
                value="Billing",
                seconds=1,
            )
            out = told_to_try_again(
                lambda sent=sent: queue.decide(db, account, sent, check_value=lambda value, text: None)
            )
            print(out.record_id, out.assignment_id, out.annotation_id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
