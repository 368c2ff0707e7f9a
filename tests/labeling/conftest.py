"""A project that was worked through two rounds: made once, copied by the tests that change something."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from rounds_of_work import Loop, reopened
from scripted_engine import ScriptedEngine

from labeling.database import accounts


@pytest.fixture(scope="session")
def _quick_passwords() -> Iterator[None]:
    """Argon2 as it ships takes 50 ms a password."""
    kept = accounts._hasher
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    yield
    accounts._hasher = kept


@pytest.fixture(scope="session")
def session_engine() -> Iterator[ScriptedEngine]:
    """One scripted engine for everything that does not order trouble."""
    with ScriptedEngine() as server:
        yield server


@pytest.fixture(scope="session")
def worked(
    tmp_path_factory: pytest.TempPathFactory, session_engine: ScriptedEngine, _quick_passwords: None
) -> Iterator[Loop]:
    """Two rounds, two releases. Read only: take `copy_of_worked` to change something."""
    loop = Loop(tmp_path_factory.mktemp("worked") / "project", session_engine.url)
    loop.setup()
    loop.whole_round(1)
    loop.export(1)
    loop.iterate(1)
    loop.whole_round(2)
    loop.export(2)
    yield loop
    loop.close()


@pytest.fixture
def copy_of_worked(worked: Loop, tmp_path: Path) -> Iterator[Loop]:
    """The worked project in a folder of its own."""
    shutil.copytree(worked.folder.root, tmp_path / "copy")
    loop = reopened(tmp_path / "copy", worked)
    yield loop
    loop.close()


@pytest.fixture
def new_loop(
    tmp_path: Path, session_engine: ScriptedEngine, _quick_passwords: None
) -> Iterator[Callable[..., Loop]]:
    """Makes a project of the test's own, before its setup."""
    made: list[Loop] = []

    def make(**settings: object) -> Loop:
        made.append(Loop(tmp_path / f"loop-{len(made)}", session_engine.url, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for loop in made:
        loop.close()
