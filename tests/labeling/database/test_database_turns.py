"""Threads of one process share a SQLite file: who waits for whom, and what a failure takes with it."""

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from clinic import Clinic
from sqlalchemy import event, text

from labeling.database import chain, queue
from labeling.database.turns import Line, ReadGate
from schemas.errors import LabelingError, StorageError


def while_somebody_writes(clinic: Clinic, *acts: Callable[[], Any]) -> list[Future[Any]]:
    """Starts every act in a thread of its own while the turn to write is taken; returns how each went."""
    pool = ThreadPoolExecutor(len(acts))
    with clinic.db.write():
        running = [pool.submit(act) for act in acts]
        time.sleep(0.3)
        assert not any(one.done() for one in running)
    pool.shutdown()
    return running


def commits(clinic: Clinic) -> list[int]:
    counted: list[int] = []
    event.listen(clinic.db.engine, "commit", lambda _connection: counted.append(1))
    return counted


def decide(clinic: Clinic, person: str, held: queue.Assignment, value: str = "Billing") -> Callable[[], Any]:
    sent = clinic.decision(held, value)
    return lambda: queue.decide(clinic.db, person, sent, check_value=clinic.check_value)


def test_decisions_that_wait_together_share_one_commit(sqlite_clinic: Clinic) -> None:
    clinic = sqlite_clinic
    people = [clinic.person(f"person {number}").id for number in range(8)]
    clinic.round(40)
    acts = [decide(clinic, who, queue.prefetch(clinic.db, who, count=1)[0]) for who in people]
    counted = commits(clinic)

    answers = [done.result() for done in while_somebody_writes(clinic, *acts)]

    assert len({answer.annotation_id for answer in answers}) == 8
    assert len(counted) == 2, "the one that was in the way and the group"
    assert len(queue.decisions_of_round(clinic.db, 1)) == 8
    assert chain.verify_chain(clinic.db) == []


def test_one_that_fails_does_not_sink_the_others_of_its_group(sqlite_clinic: Clinic) -> None:
    clinic = sqlite_clinic
    people = [clinic.person(f"person {number}").id for number in range(4)]
    clinic.round(40)
    held = [queue.prefetch(clinic.db, who, count=1)[0] for who in people]
    acts = [
        decide(clinic, people[0], held[0]),
        decide(clinic, people[1], held[0]),
        decide(clinic, people[2], held[2], "not a label"),
        decide(clinic, people[3], held[3]),
    ]

    first, not_theirs, not_a_label, last = while_somebody_writes(clinic, *acts)

    stored = {row["annotation_id"] for row in queue.decisions_of_round(clinic.db, 1)}
    assert stored == {first.result().annotation_id, last.result().annotation_id}
    assert isinstance(not_theirs.exception(), LabelingError)
    assert isinstance(not_a_label.exception(), LabelingError)
    assert chain.verify_chain(clinic.db) == []


def test_a_group_whose_commit_fails_is_told_so_and_nothing_of_it_is_stored(sqlite_clinic: Clinic) -> None:
    clinic = sqlite_clinic
    people = [clinic.person(f"person {number}").id for number in range(3)]
    clinic.round(40)
    acts = [decide(clinic, who, queue.prefetch(clinic.db, who, count=1)[0]) for who in people]
    other_program = sqlite3.connect(clinic.db.shown_as, isolation_level=None)
    other_program.execute("BEGIN")
    other_program.execute("SELECT count(*) FROM decisions").fetchone()

    pool = ThreadPoolExecutor(3)
    running = [pool.submit(act) for act in acts]
    failures = [one.exception() for one in running]
    other_program.close()

    assert ["kept the database locked" in str(failure) for failure in failures] == [True] * 3
    assert queue.decisions_of_round(clinic.db, 1) == []
    assert [act().repeated for act in acts] == [False] * 3
    assert chain.verify_chain(clinic.db) == []


def test_a_failed_commit_leaves_neither_its_transaction_nor_its_lock_behind(sqlite_clinic: Clinic) -> None:
    clinic = sqlite_clinic
    ana = clinic.person("Ana").id
    clinic.round(5)
    (held,) = queue.prefetch(clinic.db, ana, count=1)
    reader = sqlite3.connect(clinic.db.shown_as, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM decisions").fetchone()

    with pytest.raises(StorageError, match="kept the database locked"):
        decide(clinic, ana, held)()
    reader.close()

    writer = sqlite3.connect(clinic.db.shown_as, isolation_level=None, timeout=0)
    writer.execute("BEGIN IMMEDIATE")
    writer.close()
    assert queue.decisions_of_round(clinic.db, 1) == []
    assert decide(clinic, ana, held)().repeated is False


def test_a_failure_of_the_file_fails_the_whole_group(sqlite_clinic: Clinic) -> None:
    clinic = sqlite_clinic
    ana = clinic.person("Ana").id
    clinic.round(5)
    (held,) = queue.prefetch(clinic.db, ana, count=1)

    def broken() -> None:
        clinic.db.together(lambda conn: conn.execute(text("SELECT nonsense FROM nowhere")))

    running = while_somebody_writes(clinic, decide(clinic, ana, held), broken)

    assert [type(one.exception()) for one in running] == [StorageError] * 2
    assert queue.decisions_of_round(clinic.db, 1) == []


def test_a_commit_waits_for_reads_that_began_and_new_reads_for_the_commit() -> None:
    gate, order = ReadGate(5.0), list[str]()

    def commit() -> None:
        with gate.alone():
            order.append("commit")
            time.sleep(0.1)

    def read() -> None:
        with gate.reading():
            order.append("late read")

    with gate.reading():
        committing = threading.Thread(target=commit)
        committing.start()
        time.sleep(0.1)
        late = threading.Thread(target=read)
        late.start()
        time.sleep(0.1)
        with gate.reading():
            order.append("read inside the read")
    committing.join()
    late.join()

    assert order == ["read inside the read", "commit", "late read"]


def test_nobody_waits_for_a_read_without_end() -> None:
    gate = ReadGate(0.05)

    with gate.reading():
        begun = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: gate.alone().__enter__()).result()

    assert time.monotonic() - begun < 2


def test_the_turn_is_free_again_after_a_failure(clinic: Clinic) -> None:

    def fails() -> None:
        raise ValueError("of the caller's own")

    for _ in range(3):
        with pytest.raises(ValueError, match="own"):
            clinic.db.together(lambda _conn: fails())
    assert clinic.db.together(lambda _conn: 7) == 7


def test_who_came_first_is_served_first_and_who_comes_back_waits_behind_them() -> None:
    line, served = Line(1, 30.0, TimeoutError), []

    def take(name: str) -> None:
        with line.turn():
            served.append(name)

    waiting = [threading.Thread(target=take, args=(name,)) for name in "abc"]
    with line.turn():
        for number, thread in enumerate(waiting):
            thread.start()
            while len(line._waiting) <= number:
                time.sleep(0.001)
    take("again")
    for thread in waiting:
        thread.join()
    assert served == ["a", "b", "c", "again"]


def test_a_place_is_free_again_after_a_failure_and_no_more_than_the_places_are_taken() -> None:
    line, inside, most = Line(2, 30.0, TimeoutError), [], []

    def work(fails: bool) -> None:
        with line.turn():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            if fails:
                raise ValueError

    with ThreadPoolExecutor(8) as pool:
        went = [pool.submit(work, turn % 3 == 0) for turn in range(24)]
    assert sum(one.exception() is not None for one in went) == 8
    assert max(most) == 2


def test_who_waited_too_long_is_told_and_leaves_no_gap_in_the_line() -> None:
    line = Line(1, 0.05, TimeoutError)

    def wait() -> None:
        with line.turn():
            pass

    with ThreadPoolExecutor(1) as pool:
        with line.turn(), pytest.raises(TimeoutError):
            pool.submit(wait).result()
        pool.submit(wait).result()
