"""A clinic's project, its review app (in the process, or as a real server for a browser), and people to log in."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient

from labeling.database import accounts, rounds
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from review_app.main import AppSettings, create_app
from schemas.project import Project
from schemas.review import Purpose, QueueItem, Role, RoundState, Seen

LABELS = ("Appointment", "Prescription refill", "Test results", "Billing")
PASSWORD = "a few long words"
TEXTS = (
    "I ran out of my blood pressure pills on Friday. Can Dr. Osei renew them today?",
    "Could I move my appointment on Thursday to next week?",
    "I got a letter about 84 euros for a blood test. Who do I call?",
    "Has the result of my thyroid scan come in?",
)
SUGGESTED: dict[str, Any] = {
    "classification": "Prescription refill",
    "multilabel": ["Prescription refill"],
    "entities": [{"start": 0, "end": 5, "label": "Billing", "quote": None}],
    "pairs": {"instruction": "Sum up the message.", "input": "", "output": "A request."},
}


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    kept = accounts._hasher
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    yield
    accounts._hasher = kept


class Site:
    """One project with its people."""

    password = PASSWORD
    labels = LABELS

    def __init__(self, folder: Path, task: str = "classification", labels: tuple[str, ...] = LABELS) -> None:
        self.folder = ProjectFolder(folder)
        self.task = task
        (folder / "guideline.md").write_text(
            "# Guideline\n\nRead all of it.\n\n<script>alert(1)</script>\n", encoding="utf-8"
        )
        self.project = Project.model_validate(
            {
                "version": 1,
                "name": "clinic",
                "title": "Clinic inbox",
                "schema": {
                    "task": task,
                    "instruction": "What does this message want?",
                    "labels": [
                        {"name": name, "definition": f"It is about {name.lower()}."} for name in labels
                    ],
                    "allow_overlapping_spans": True,
                },
                "sources": [{"path": "messages.csv"}],
            }
        )
        self.db: Database = open_database(self.folder)

    def person(self, name: str, role: Role = Role.ANNOTATOR) -> accounts.Account:
        token = accounts.invite(self.db, role, name, accounts.OPERATOR)
        return accounts.accept_invitation(self.db, token, name, PASSWORD)

    def round(
        self,
        records: int = 8,
        *,
        number: int = 1,
        overlap: int = 1,
        blind_every: int = 0,
        texts: tuple[str, ...] = TEXTS,
        suggestion: Any = ...,
        confidence: float | None = 0.72,
    ) -> None:
        rounds.open_round(self.db, number, state=RoundState.OPEN, rehearsal=False, actor="flow")
        items, content = [], {}
        for i in range(records):
            blind = bool(blind_every) and i % blind_every == blind_every - 1
            items.append(
                QueueItem(
                    record_id=f"r{i}",
                    purpose=Purpose.AUDIT if blind else Purpose.SELECTED,
                    seen=Seen.BLIND if blind else Seen.ASSISTED,
                    priority=float(-i),
                    overlap=overlap,
                )
            )
            text = texts[i % len(texts)]
            value = SUGGESTED[self.task] if suggestion is ... else suggestion
            if self.task == "entities" and value:
                value = [{**span, "quote": text[span["start"] : span["end"]]} for span in value]
            told = None if value is None else {"value": value, "confidence": confidence, "by": "llm"}
            content[f"r{i}"] = (text, told)
        rounds.add_items(self.db, number, items, content, "flow")

    def app(self, **settings: Any) -> FastAPI:
        return create_app(AppSettings(project=self.project, folder=self.folder, **settings))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.db.close()


Client = TestClient


@pytest.fixture
def browserless(site: Site) -> Iterator[Callable[..., TestClient]]:
    """Makes HTTP clients of one running app, logged in as a person if named."""
    app = site.app(local_user=True, requests_per_s=10_000, logins_per_s=1_000)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as first:
        others: list[TestClient] = []

        def client(name: str | None = None) -> TestClient:
            # Not entered: the app runs already, a second lifespan would open the database again.
            made = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
            others.append(made)
            if name is not None:
                answer = made.post("/api/login", json={"name": name, "password": PASSWORD})
                assert answer.status_code == 200, answer.text
                made.headers["X-CSRF-Token"] = answer.json()["csrf"]
            return made

        yield client
        del first


class Server:
    """The app behind a real port, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.app = app
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(self.app, port=self.port, log_level="error", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the review app did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[[FastAPI], Server]]:
    servers: list[Server] = []

    def start(app: FastAPI) -> Server:
        servers.append(Server(app))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        message = "Chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *quiet],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails the test when a script breaks or the policy blocks something."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    made = context.new_page()
    made.set_default_timeout(15_000)
    problems: list[str] = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda said: "Content Security" in said.text and problems.append(said.text))
    yield made
    context.close()
    assert problems == []
