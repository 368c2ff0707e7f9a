"""A clinic's project with its review app, and the app behind a real port."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI

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
                "review": {"copilot": False},
            }
        )
        # The file says the same: pages that write it read it first.
        document = self.project.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        (folder / "project.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
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
        evidence: tuple[dict[str, Any], ...] = (),
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
            told = {"value": value, "confidence": confidence, "by": "llm", "evidence": list(evidence)}
            content[f"r{i}"] = (text, None if value is None else told)
        rounds.add_items(self.db, number, items, content, "flow")

    def app(self, **settings: Any) -> FastAPI:
        return create_app(AppSettings(project=self.project, folder=self.folder, **settings))


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
