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
from small_projects import write_project

from countersign import daily
from deployments.services import QUIET_ENVIRONMENT, Service, ServiceError, answers
from labeling import paths
from labeling.storage import read_json
from schemas.errors import ProjectError

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


def test_two_projects_of_one_name_are_not_brought_up_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "copy"):
        write_project(tmp_path / folder, [{"text": "a"}])
    monkeypatch.setattr(daily, "start_prefect_server", lambda: pytest.fail("nothing may be started"))

    with pytest.raises(ProjectError, match="'small', the name of .*one too"):
        daily.bring_up([tmp_path / "one", tmp_path / "copy"], port=8741, local_user=True)


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


@pytest.mark.campaign
def test_up_keeps_the_server_of_a_run_that_ends(
    home: Path, start: Callable[..., subprocess.Popen[str]], lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60)
    code = "import sys; from countersign.driving import prefect_running\n"
    code += "with prefect_running() as url:\n    print(url, flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        url = run.stdout.readline().strip()
        up = start(root)
        wait_for((home / "services" / "review-small.json").is_file)
        run.communicate("\n", timeout=WAIT_S)

        assert up.stdout is not None
        told = json.loads(up.stdout.readline())
    assert told["prefect_url"] == url
    assert answers(f"{url}/api/health")
    server = read_json(home / "services" / "prefect.json")["pid"]

    up.send_signal(signal.SIGTERM)
    _, said = up.communicate(timeout=WAIT_S)

    assert up.returncode == 0
    assert "has ended" not in said
    wait_for(lambda: not Path(f"/proc/{server}").exists())
    assert not list((home / "services").glob("*.json"))


@pytest.mark.campaign
def test_two_installations_that_start_at_once_have_a_server_each(tmp_path: Path) -> None:
    code = "import sys; from deployments.services import start_prefect_server\n"
    code += "print(start_prefect_server(8751).url, flush=True); sys.stdin.readline()"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, **QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": str(tmp_path / name)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]

    urls = [user.stdout.readline().strip() for user in both if user.stdout is not None]
    noted = [read_json(tmp_path / name / "services" / "prefect.json") for name in ("one", "other")]
    alive = [Path(f"/proc/{entry['pid']}").exists() for entry in noted]
    for user in both:
        user.communicate("\n", timeout=WAIT_S)

    assert len({"", *urls}) == 3
    assert [entry["url"] for entry in noted] == urls
    assert alive == [True, True]


@pytest.mark.campaign
def test_a_server_ends_when_all_who_used_it_were_killed(home: Path) -> None:
    code = "import sys; from deployments.services import start_prefect_server\n"
    code += "print(start_prefect_server().url, flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdout is not None
        url = user.stdout.readline().strip()
        assert answers(f"{url}/api/health")
        user.kill()

    wait_for(lambda: not answers(f"{url}/api/health"))
