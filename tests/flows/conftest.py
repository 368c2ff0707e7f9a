"""One Prefect server for all flow tests, in a home of its own; commands run as a user would run them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from letters import LABELS, letters
from scripted_engine import ScriptedEngine
from small_projects import write_project

from deployments.services import QUIET_ENVIRONMENT, prefect_environment, start_prefect_server
from labeling import paths


@dataclass
class Installation:
    """A home with a running Prefect server."""

    home: Path
    url: str
    said: str = ""  # on stderr by the last command

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": str(self.home), "COLUMNS": "200"}

    def command(self, *arguments: object, check: int | None = 0) -> tuple[int, dict[str, Any]]:
        """Runs `countersign ... --json`; returns exit code and the one JSON object."""
        done = subprocess.run(
            [sys.executable, "-m", "countersign.main", *map(str, arguments), "--json"],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=Path(__file__).resolve().parents[2],
            timeout=280,
            check=False,
        )
        self.said = done.stderr
        assert check is None or done.returncode == check, (done.returncode, done.stdout, done.stderr[-3000:])
        return done.returncode, json.loads(done.stdout)

    def start(self, code: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Runs Python code that finds the Prefect server; its output goes nowhere."""
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**self.environment, **prefect_environment(self.url), "COUNTERSIGN_HOME": str(self.home)},
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The server is started once: it takes seconds on an idle machine and more on a busy one."""
    home = tmp_path_factory.mktemp("home")
    models, before = paths.models(), os.environ.get("COUNTERSIGN_HOME")
    if models.is_dir():
        (home / "models").symlink_to(models)
    os.environ["COUNTERSIGN_HOME"] = str(home)
    server = start_prefect_server()
    yield Installation(home, server.url)
    server.stop()
    if before is None:
        del os.environ["COUNTERSIGN_HOME"]
    else:
        os.environ["COUNTERSIGN_HOME"] = before


@pytest.fixture
def lettered(tmp_path: Path) -> Iterator[Callable[..., tuple[Path, ScriptedEngine]]]:
    """Makes a project whose model is the scripted engine, which also gives vectors."""
    with ScriptedEngine(LABELS) as engine:

        def make(count: int = 120, **sections: Any) -> tuple[Path, ScriptedEngine]:
            settings: dict[str, Any] = {
                "setup": {"sample": 20, "threshold": 0.6},
                "review": {"round_records": 20, "blind_slice": 20, "overlap_share": 0.25},
                "embedding": {"kind": "llama-server", "model": "scripted", "endpoints": [engine.url]},
                **sections,
            }
            write_project(
                tmp_path / "project",
                letters(count),
                labels=LABELS,
                source={"id": "id"},
                engine_url=engine.url,
                **settings,
            )
            return tmp_path / "project", engine

        yield make
