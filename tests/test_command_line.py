"""What the command line refuses before anything starts, and the exit codes that scripts look at."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from countersign import daily, driving, main
from countersign.main import app
from deployments import services
from labeling.database import accounts
from labeling.database.opening import project_database
from labeling.initializing import initialize
from labeling.listening import take_port
from labeling.project_file import load_project
from labeling.status import Position
from review_app.__main__ import main as serve_review_app
from schemas.review import Role

PASSWORD = "correct horse battery"
NOT_TRIED = {"model": "nope", "error": "model nope: no such file", "next": "Name another."}


def ended(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def project(tmp_path: Path) -> str:
    initialize(tmp_path / "inbox", task="classification", source=None)
    return str(tmp_path / "inbox")


@pytest.mark.parametrize(
    "option",
    [
        "run --round 0",
        "run --round -5",
        "review --port 99999",
        "review --port 0",
        "up --port 65536",
        "rehearse --truth label --rounds 0",
        "rehearse --truth label --annotators 0",
        "rehearse --truth label --annotator-error 2",
        "rehearse --truth label --annotator-error -0.1",
        "rehearse --truth label --annotator-error nan",
    ],
)
def test_a_number_that_means_nothing_is_wrong_usage(option: str) -> None:
    command, *options = option.split()

    # A folder without a project: what is let through ends with 1.
    done = ended(command, "no-such-folder", *options)

    assert done.exit_code == 2, done.output
    assert options[-2] in done.output


def test_ctrl_c_on_a_run_says_what_to_do_in_the_one_object_it_prints(project: str) -> None:
    rows = "".join(f"message {number} about a bill\n" for number in range(2000))
    (Path(project) / "records.csv").write_text("text\n" + rows, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("countersign")), "run", project, "--json"]

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that runs in the background may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stderr is not None
        assert "Round 1" in running.stderr.readline()
        os.killpg(running.pid, signal.SIGINT)
        printed, _ = running.communicate(timeout=60)

    (problem,) = json.loads(printed)["problems"]
    assert running.returncode == 130
    assert problem["found"] == "Ctrl-C" and "goes on where this one stopped" in problem["next"]


def test_round_zero_is_no_goal_that_never_comes(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "_where", lambda project, folder: Position("setup", 1))
    monkeypatch.setattr(driving, "run_phase", lambda *_: pytest.fail("a phase was run"))

    assert driving.drive(Path(project), until=None, only_round=0)["state"] == "done"


@pytest.mark.parametrize(
    ("rows", "code"),
    [([NOT_TRIED], 1), ([NOT_TRIED, {"model": "good"}], 0), ([{"model": "good"}], 0)],
)
def test_a_comparison_that_tried_no_model_has_failed(
    rows: list[dict[str, Any]], code: int, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.compare
    from labeling import comparing

    answer = {"models": rows, "recommended": None, "reason": "No model could be tried."}
    monkeypatch.setattr(driving, "prefect_running", nullcontext)
    monkeypatch.setattr(flows.compare, "compare", lambda run: answer)
    monkeypatch.setattr(comparing, "comparison_table", lambda answer: "a table")

    done = ended("compare", project, "--models", "nope")

    assert done.exit_code == code, done.output
    assert "a table" in done.output


# -- the first account -------------------------------------------------------------------------------------------------


def service_at(url: str) -> services.Service:
    return services.Service("test", url, None, lambda: service_at(url))


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def review_app(*_: object, port: int, **__: object) -> services.Service:
        return service_at(f"http://127.0.0.1:{port}")

    for module in (services, daily):
        monkeypatch.setattr(module, "start_review_app", review_app)
    monkeypatch.setattr(daily, "start_prefect_server", lambda: service_at("http://127.0.0.1:4200"))
    monkeypatch.setattr(daily, "start_runner", lambda *_: service_at("http://127.0.0.1:4201"))
    monkeypatch.setattr(daily, "wait_for_deployment", lambda name: None)
    monkeypatch.setattr(daily, "only_one", nullcontext)
    monkeypatch.setattr(main, "_until_interrupted", lambda *_: None)
    monkeypatch.setattr("review_app.__main__.take_port", lambda *_: socket.socket())
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, **_: setattr(server, "started", True))


def made_with(link: str, project: str) -> Role:
    """The role of the account that somebody makes with a link."""
    with project_database(*load_project(project)) as db:
        return accounts.accept_invitation(db, link.rpartition("/invitation/")[2], "ada", PASSWORD).role


def setup_links(said: str) -> list[str]:
    return re.findall(r"http://127\.0\.0\.1:8321/invitation/[\w-]+", said)


@pytest.mark.parametrize("command", ["review", "up"])
def test_without_a_local_user_the_first_admin_is_let_in_by_a_link(
    command: str, project: str, nothing_starts: None
) -> None:
    assert setup_links(ended(command, project).output) == []

    (link,) = setup_links(ended(command, project, "--no-local-user").output)
    answer = json.loads(ended(command, project, "--no-local-user", "--json").output)
    newer = answer["setup_url"] if command == "review" else answer["setup_urls"][0]

    assert newer != link
    assert made_with(newer, project) is Role.ADMIN
    told = ended(command, project, "--no-local-user", "--json").output
    assert not {"setup_url", "setup_urls"} & set(json.loads(told))


def test_a_review_app_whose_port_is_taken_says_so(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    with take_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]

        assert serve_review_app(["--project", project, "--port", str(port)]) == 1

    said = capsys.readouterr().err
    assert f"127.0.0.1:{port}: found Address already in use" in said and "Choose another port" in said


def test_the_review_app_of_a_unit_prints_the_link_too(
    project: str, nothing_starts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve_review_app(["--project", project]) == 0
    assert setup_links(capsys.readouterr().out) == []

    assert serve_review_app(["--project", project, "--setup-link"]) == 0

    (link,) = setup_links(capsys.readouterr().out)
    assert made_with(link, project) is Role.ADMIN
    assert serve_review_app(["--project", project, "--setup-link"]) == 0
    assert setup_links(capsys.readouterr().out) == []
