"""`countersign up`: starts once, starts again what crashed, stops cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from countersign import daily
from deployments.services import QUIET_ENVIRONMENT, Service, ServiceError, answers
from labeling import paths
from labeling.storage import read_json

WAIT_S = 120.0


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    if paths.models().is_dir():
        (tmp_path / "home" / "models").symlink_to(paths.models())
    return tmp_path / "home"


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(root: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "countersign.main", "up", str(root), "--port", "8741", "--json"]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": str(home)},
            cwd=Path(__file__).resolve().parents[2],
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def test_what_crashes_is_started_again_and_a_second_start_is_refused(
    home: Path, start: Callable[..., subprocess.Popen[str]], lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60)
    first = start(root)
    assert first.stdout is not None
    told = json.loads(first.stdout.readline())
    notes = {path.stem: path for path in (home / "services").glob("*.json")}
    pids = {name: read_json(path)["pid"] for name, path in notes.items()}
    assert set(pids) == {"prefect", "review-small", "runner-project"}

    second = start(root)
    out, _ = second.communicate(timeout=WAIT_S)
    assert second.returncode == 1
    assert told["prefect_url"] in json.loads(out)["problems"][0]["found"]

    for name in pids:
        os.kill(pids[name], signal.SIGKILL)
    for name, path in notes.items():
        wait_for(lambda name=name, path=path: path.is_file() and read_json(path)["pid"] != pids[name])
    wait_for(lambda: answers(f"{told['review_url']}/healthz"))
    wait_for(lambda: answers(f"{told['prefect_url']}/api/health"))

    children = [read_json(path)["pid"] for path in notes.values()]
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=WAIT_S)
    assert first.returncode == 0
    for pid in children:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())
    assert not list((home / "services").glob("*.json"))


def test_a_service_that_ends_again_and_again_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTERSIGN_HOME", str(home))
    monkeypatch.setattr(daily, "LOOK_EVERY_S", 0.01)
    starts = []

    def again() -> Service:
        starts.append(1)
        child = subprocess.Popen(["false"], start_new_session=True)
        child.wait()
        return Service("review-small", "http://127.0.0.1:1", child, again)

    said: list[str] = []
    with pytest.raises(ServiceError, match="6 times"):
        daily.keep_up([again()], said.append)

    assert len(starts) == 1 + daily.MOST_RESTARTS
    assert said[0] == "review-small has ended; starting it again."
