"""The review server is killed under people who work: what it acknowledged is there, once."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from review_site import LABELS, PASSWORD, Site

from labeling.database import chain, queue, rounds

ROOT = Path(__file__).resolve().parents[2]


def write_project(folder: Path) -> None:
    labels = "".join(f"    - name: {name}\n" for name in LABELS)
    (folder / "project.yaml").write_text(
        "version: 1\nname: clinic\ntitle: Clinic inbox\n"
        f"schema:\n  task: classification\n  labels:\n{labels}"
        "sources:\n  - path: messages.csv\n",
        encoding="utf-8",
    )


def start(folder: Path, port: int) -> tuple["subprocess.Popen[bytes]", float]:
    """The server as `countersign review` runs it; returns it with the seconds it took to answer."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "review_app", "--project", str(folder), "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while True:
        assert process.poll() is None, "the review app did not start"
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).raise_for_status()
            return process, time.monotonic() - begun
        except httpx.HTTPError:
            time.sleep(0.05)


class Annotator(threading.Thread):
    """Decides until told to stop; a request without an answer is sent again with its key, like the browser does."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=10)
        self.person = name
        self.stopped = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.trouble: list[str] = []

    def run(self) -> None:
        try:
            self._log_in()
            while not self.stopped.is_set():
                answer = self._until_answered("GET", "/api/next?count=5")
                items = answer.json()["items"] if answer is not None else []
                if not items:
                    return
                for item in items:
                    self._decide(item)
        except Exception as error:
            self.trouble.append(repr(error))
            raise

    def _log_in(self) -> None:
        answer = self._until_answered("POST", "/api/login", {"name": self.person, "password": PASSWORD})
        assert answer is not None
        self.client.headers["X-CSRF-Token"] = answer.json()["csrf"]

    def _decide(self, item: dict[str, Any]) -> None:
        sent = {
            "assignment_id": item["assignment_id"],
            "idempotency_key": f"{self.person}-{item['record_id']}-{item['version']}",
            "expected_version": item["version"],
            "action": "correct",
            "value": "Billing",
            "seconds": 1,
        }
        answer = self._until_answered("POST", "/api/decisions", sent)
        if answer is None:
            return
        if answer.status_code != 200:
            self.trouble.append(answer.text)
            return
        self.acknowledged[answer.json()["annotation_id"]] = item["record_id"]

    def _until_answered(self, method: str, path: str, body: Any = None) -> httpx.Response | None:
        while not self.stopped.is_set():
            try:
                return self.client.request(method, path, json=body)
            except httpx.TransportError:
                time.sleep(0.05)
        return None


def wait_for_work(people: list[Annotator], decisions: int) -> None:
    """Until they have made so many more: machines differ in speed, kills shall always hit work."""
    wanted = sum(len(person.acknowledged) for person in people) + decisions
    end = time.monotonic() + 60
    while sum(len(person.acknowledged) for person in people) < wanted:
        assert time.monotonic() < end and all(person.is_alive() for person in people), "nobody works"
        time.sleep(0.01)


def kill_server(folder: Path, kills: int) -> None:
    site = Site(folder)
    write_project(folder)
    names = [f"person-{number}" for number in range(4)]
    for name in names:
        site.person(name)
    site.round(4_000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process, _ = start(folder, port)
    people = [Annotator(port, name) for name in names]
    for person in people:
        person.start()
    chance = random.Random(3)
    starts = []
    for _ in range(kills):
        wait_for_work(people, 15)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process, took = start(folder, port)
        starts.append(took)
    wait_for_work(people, 15)
    for person in people:
        person.stopped.set()
    for person in people:
        person.join(20)
    process.terminate()
    process.wait(20)
    acknowledged = {
        annotation: record for person in people for annotation, record in person.acknowledged.items()
    }
    assert [trouble for person in people for trouble in person.trouble] == []
    stored = {row["annotation_id"]: row["record_id"] for row in queue.decisions_of_round(site.db, 1)}
    assert len(acknowledged) >= 15 * (kills + 1)
    assert acknowledged.items() <= stored.items()
    assert len(set(stored.values())) == len(stored)
    assert rounds.progress(site.db, 1).done == len(stored)
    assert chain.verify_chain(site.db) == []
    print(f"{len(acknowledged)} acknowledged, {kills} kills, slowest start {max(starts):.1f} s")
    site.db.close()


def test_three_kills_of_the_server_lose_no_acknowledged_decision(tmp_path: Path) -> None:
    kill_server(tmp_path, 3)


@pytest.mark.campaign
def test_twenty_kills_of_the_server_lose_no_acknowledged_decision(tmp_path: Path) -> None:
    kill_server(tmp_path, 20)


def test_a_project_that_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "review_app", "--project", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
