"""What the command line refuses before anything starts, and the exit codes that scripts look at."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from countersign import driving
from countersign.main import app
from labeling.initializing import initialize
from labeling.status import Position

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
