"""Small real things for every test: a project in a folder, an engine on a loopback port, the real model."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripted_engine import ScriptedEngine

from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from schemas.errors import ModelFileError
from schemas.project import Project

ProjectFactory = Callable[..., tuple[Project, ProjectFolder]]


def need(condition: object, reason: str) -> None:
    """Skips where something is not there, but fails in CI: there it has to be."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"needed in CI: {reason}")
    pytest.skip(reason)


@pytest.fixture(name="need", scope="session")
def _need() -> Callable[[object, str], None]:
    return need


def write_project(
    root: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    labels: Sequence[str] = ("alpha", "beta"),
    source: Mapping[str, Any] | None = None,
    engine_url: str | None = None,
    **sections: Any,
) -> tuple[Project, ProjectFolder]:
    """A small classification project: rows as JSONL, project.yaml, guideline.

    Args:
        root: The project folder; made if it is not there.
        rows: Literal rows; `text` and whatever `source` names.
        labels: Label names; a mapping is taken as it is.
        source: Keys of the source section other than path.
        engine_url: A llama-server to use.
        sections: Further top-level sections of project.yaml.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (root / "guideline.md").write_text("# Guideline\n\nOne label for every record.\n", "utf-8")
    document: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "schema": {
            "task": "classification",
            "instruction": "Which letter is meant?",
            "labels": [label if isinstance(label, Mapping) else {"name": label} for label in labels],
        },
        "sources": [{"path": "records.jsonl", "text": "text", **(source or {})}],
        "prompts": {"files": ["builtin:plain"]},
        "embedding": {"kind": "none"},
        **sections,
    }
    if engine_url is not None:
        document["engine"] = {
            "kind": "llama-server",
            "model": "scripted",
            "endpoints": [engine_url],
            "timeout_s": 1.0,
        }
    (root / "project.yaml").write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), "utf-8")
    return load_project(root)


@pytest.fixture
def project_folder(tmp_path: Path) -> ProjectFactory:
    """Makes a small classification project in the test's own folder; see `write_project`."""

    def make(rows: Sequence[Mapping[str, Any]], **settings: Any) -> tuple[Project, ProjectFolder]:
        return write_project(tmp_path / "project", rows, **settings)

    return make


@pytest.fixture
def scripted() -> Iterator[ScriptedEngine]:
    """A free engine of the test's own, answering with the labels alpha and beta."""
    with ScriptedEngine() as server:
        yield server


@pytest.fixture
def connect() -> Iterator[Callable[..., LlamaServer]]:
    """Connects to a scripted engine; closed after the test."""
    opened: list[LlamaServer] = []

    def open_(server: ScriptedEngine, *, timeout_s: float = 5.0) -> LlamaServer:
        engine = LlamaServer(
            EngineConnection(server.url, timeout_s=timeout_s), digest="d" * 64, engine="scripted"
        )
        opened.append(engine)
        return engine

    yield open_
    for engine in opened:
        engine.close()


@pytest.fixture(scope="session")
def real_engine() -> Iterator[Any]:
    """The shipped model in this process: one for the whole session."""
    from labeling.engines.embedded import EmbeddedEngine
    from labeling.engines.model_files import model_file

    try:
        file = model_file("smollm2-135m-instruct")
    except ModelFileError as error:
        need(False, str(error))
        raise
    engine = EmbeddedEngine(file, context=512, slots=2, threads=None)
    yield engine
    engine.close()


class SmallDisk:
    """A file system of its own with little room."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self, leave: int = 0) -> None:
        """Leaves so many bytes (in pages of 4 KiB)."""
        free = os.statvfs(self.root)
        with (self.root / "filler").open("wb") as file:
            file.write(b"\0" * max(free.f_bavail * free.f_bsize - leave, 0))

    def free(self) -> None:
        (self.root / "filler").unlink()

    def read_only(self, on: bool = True) -> None:
        mode = "ro" if on else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.root)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Two megabytes of memory as a disk: the only way to a real ENOSPC and a real EROFS."""
    root = tmp_path / "disk"
    root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    need(mounted.returncode == 0, f"a small disk can be mounted ({mounted.stderr.strip()})")
    yield SmallDisk(root)
    subprocess.run(["umount", "-l", str(root)], check=True, capture_output=True)
