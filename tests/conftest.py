"""Small real things for every test: a project in a folder, an engine on a loopback port, the real model."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory, SmallDisk, need, write_project

from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.paths import ProjectFolder
from schemas.errors import ModelFileError
from schemas.project import Project

# How long an example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(name="need", scope="session")
def _need() -> Callable[[object, str], None]:
    return need


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
