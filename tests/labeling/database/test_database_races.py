"""Many people at once, doubled submissions, and writers that are killed."""

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic

from labeling.database import chain, queue, rounds
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from schemas.review import Purpose, Role, SignOff

ROOT = Path(__file__).resolve().parents[3]


def annotator(folder: Path, url: str | None, account: str, what: str, times: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [
            sys.executable,
            str(Path(__file__).with_name("annotator_process.py")),
            *[str(folder), url or "-", account, what, str(times)],
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def test_400_racing_claims_of_threads_never_exceed_a_record_s_overlap(clinic: Clinic) -> None:
    people = [clinic.person(f"person {number}") for number in range(20)]
    clinic.round(100, overlap=2, purpose=Purpose.OVERLAP, prefix="o")
    clinic.round(150)
    start = threading.Barrier(20)

    def claim(account_id: str) -> list[str]:
        start.wait()
        got: list[str] = []
        for count in range(1, 21):
            got = [held.record_id for held in queue.prefetch(clinic.db, account_id, count=count)]
        return got

    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(claim, [person.id for person in people]))
    assert all(len(set(records)) == len(records) for records in got)
    held_by = Counter(record for records in got for record in records)
    assert all(people <= (2 if record.startswith("o") else 1) for record, people in held_by.items())
    assert sum(held_by.values()) == min(20 * 20, 2 * 100 + 150)


def test_racing_claims_of_processes_never_exceed_a_record_s_overlap(
    clinic: Clinic, tmp_path: Path, url: str | None
) -> None:
    people = [clinic.person(f"person {number}") for number in range(3)]
    clinic.round(25)
    processes = [annotator(tmp_path, url, person.id, "claim", 10) for person in people]
    for process in processes:
        go(process)
    got = [line.split()[0] for process in processes for line in process.communicate()[0].splitlines()]
    assert len(got) == len(set(got)) == 25


def double_submissions(clinic: Clinic, times: int) -> None:
    people = [clinic.person(f"person {number}") for number in range(4)]
    clinic.round(times)

    def send_twice(account_id: str) -> list[tuple[str, str]]:
        answers = []
        for held in queue.prefetch(clinic.db, account_id, count=times // 4):
            sent = clinic.decision(held, idempotency_key=f"key-{account_id}-{held.record_id}")
            first = queue.decide(clinic.db, account_id, sent, check_value=clinic.check_value)
            second = queue.decide(clinic.db, account_id, sent, check_value=clinic.check_value)
            answers.append((first.annotation_id, second.annotation_id))
        return answers

    with ThreadPoolExecutor(4) as pool:
        answers = [pair for pairs in pool.map(send_twice, [p.id for p in people]) for pair in pairs]
    assert len(answers) == times
    assert all(first == second for first, second in answers)
    stored = [row["annotation_id"] for row in queue.decisions_of_round(clinic.db, 1)]
    assert len(stored) == len(set(stored)) == times


def test_two_hundred_doubled_submissions_are_two_hundred_decisions(sqlite_clinic: Clinic) -> None:
    double_submissions(sqlite_clinic, 200)


@pytest.mark.campaign
def test_a_thousand_doubled_submissions_are_a_thousand_decisions(clinic: Clinic) -> None:
    double_submissions(clinic, 1_000)


def test_submissions_doubled_at_the_same_moment_are_stored_once(
    clinic: Clinic, another_window: Callable[[], Database]
) -> None:
    ana = clinic.person("Ana")
    clinic.round(40)
    windows = [clinic.db, another_window()]
    for held in queue.prefetch(clinic.db, ana.id, count=40):
        sent = clinic.decision(held)
        both = threading.Barrier(2)

        def send(db: Database, sent: object = sent, both: threading.Barrier = both) -> str:
            both.wait()
            return queue.decide(db, ana.id, sent, check_value=clinic.check_value).annotation_id  # type: ignore[arg-type]

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(send, windows)
        assert first == second
    assert len(queue.decisions_of_round(clinic.db, 1)) == 40
    assert chain.verify_chain(clinic.db) == []


def test_different_answers_of_one_person_at_the_same_moment_leave_one_and_a_conflict(
    clinic: Clinic, another_window: Callable[[], Database]
) -> None:
    ana = clinic.person("Ana")
    clinic.round(20)
    windows = [clinic.db, another_window()]
    for held in queue.prefetch(clinic.db, ana.id, count=20):
        both = threading.Barrier(2)

        def send(
            at: int, held: queue.Assignment = held, both: threading.Barrier = both
        ) -> str | queue.DecisionConflict:
            both.wait()
            try:
                sent = clinic.decision(held, ("Billing", "Results")[at])
                out = queue.decide(windows[at], ana.id, sent, check_value=clinic.check_value)
            except queue.DecisionConflict as conflict:
                return conflict
            return str(out.value)

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(send, (0, 1)))
        (saved,) = [answer for answer in answers if isinstance(answer, str)]
        (conflict,) = [answer for answer in answers if isinstance(answer, queue.DecisionConflict)]
        assert conflict.stored["value"] == saved
    assert len(queue.decisions_of_round(clinic.db, 1)) == 20


def kill_writers(clinic: Clinic, folder: Path, url: str | None, kills: int) -> None:
    """Two annotators work and are killed at a random moment, again and again."""
    people = [clinic.person(f"person {number}") for number in range(2)]
    clinic.round(3_000)
    acknowledged: list[list[str]] = []
    chance = random.Random(5)
    for _ in range(kills):
        processes = [annotator(folder, url, person.id, "decide", 10_000) for person in people]
        for process in processes:
            go(process)
        acknowledged.append(
            processes[0].stdout.readline().split()
        )  # on a busy machine starting takes its time
        time.sleep(chance.uniform(0.0, 0.3))
        for process in processes:
            process.kill()
        for process in processes:
            out = process.communicate()[0]
            # A line cut by the kill was not an acknowledgement.
            acknowledged += [line.split() for line in out.splitlines(keepends=True) if line.endswith("\n")]
    with open_database(ProjectFolder(folder), url) as db:
        stored = {row["annotation_id"]: row["record_id"] for row in queue.decisions_of_round(db, 1)}
        assert acknowledged
        for record, _, annotation in acknowledged:
            assert stored[annotation] == record
        assert len(set(stored.values())) == len(stored)
        assert rounds.progress(db, 1).done == len(stored)
        assert chain.verify_chain(db) == []


def test_killing_writers_loses_no_acknowledged_decision(
    clinic: Clinic, tmp_path: Path, url: str | None
) -> None:
    kill_writers(clinic, tmp_path, url, kills=1)


@pytest.mark.campaign
def test_killing_writers_twenty_times_loses_no_acknowledged_decision(
    clinic: Clinic, tmp_path: Path, url: str | None
) -> None:
    kill_writers(clinic, tmp_path, url, kills=20)


def meanwhile(
    pool: ThreadPoolExecutor, module: Any, name: str, act: Callable[[], Any], patch: Any
) -> list[Any]:
    """Lets somebody act at the moment a function is called, and gives them time to finish or to wait for a lock."""
    acts: list[Any] = []
    kept = getattr(module, name)

    def interrupted(*given: Any, **more: Any) -> Any:
        if not acts:
            acts.append(pool.submit(act))
            wait(acts, 0.3)
        return kept(*given, **more)

    patch.setattr(module, name, interrupted)
    return acts


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("does", ["comments", "flags"])
def test_one_who_decides_and_one_who_remarks_on_the_same_record_do_not_wait_for_each_other(
    clinic: Clinic, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana, bob = clinic.person("Ana"), clinic.person("Bob")
    clinic.round(1, overlap=2)
    theirs = queue.claim(clinic.db, bob.id)
    assert theirs is not None

    def remark() -> object:
        if does == "comments":
            return queue.comment(clinic.db, bob.id, theirs.assignment_id, "Reads like two requests.")
        return queue.flag(clinic.db, bob.id, theirs.assignment_id, raised=True)

    with ThreadPoolExecutor(1) as pool:
        # When the record is locked and the head of the chain is not yet.
        remarked = meanwhile(pool, queue, "_settle_action", remark, monkeypatch)
        stored = clinic.decide(ana)
        (one,) = remarked
        one.result(10)
    assert [row["annotation_id"] for row in queue.decisions_of_round(clinic.db, 1)] == [stored.annotation_id]
    assert chain.verify_chain(clinic.db) == []


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_lead_signs_while_their_own_page_asks_for_records(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    lea = clinic.person("Lea", Role.MANAGER)
    clinic.round(1)
    clinic.decide(lea)
    with ThreadPoolExecutor(1) as pool:
        asked = meanwhile(pool, rounds, "_missing", lambda: queue.claim(clinic.db, lea.id), monkeypatch)
        rounds.sign(clinic.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
        assert asked[0].result(10) is None
    assert chain.verify_chain(clinic.db) == []
