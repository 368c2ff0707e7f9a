"""What the terminal shows of a flow that is refused: one plain error, no lines of code."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_projects import ProjectFactory

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def refused(project_folder: ProjectFactory) -> Iterator[Path]:
    """A project with too few records for its sample."""
    _, folder = project_folder([{"text": f"text {number}"} for number in range(5)])
    yield folder.root


def test_a_refused_run_says_why_once_and_without_a_traceback(refused: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "countersign.main", "run", str(refused)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr and "Finished in state" not in ran.stderr
    assert ran.stderr.count("records to label") == 1


@pytest.mark.parametrize("task", ["multilabel", "entities", "pairs"])
def test_a_task_that_is_not_labelled_yet_is_refused_before_anybody_labels_a_sample(
    task: str, installation: Any, tmp_path: Path
) -> None:
    rows = "".join(f"text number {number}\n" for number in range(70))
    (tmp_path / "rows.csv").write_text(f"text\n{rows}")
    installation.command("init", tmp_path / "other", "--task", task, "--from", tmp_path / "rows.csv")

    _, answer = installation.command("run", tmp_path / "other", check=1)

    (problem,) = answer["problems"]
    assert (problem["path"], problem["found"], problem["expected"]) == ("schema.task", task, "classification")
