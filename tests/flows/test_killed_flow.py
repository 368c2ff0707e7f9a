"""SIGKILL of the flow process: what was committed is never asked again, nothing is missing, the table is the same."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labeling.project_file import load_project
from labeling.score_store import ScoreStore
from labeling.setup import load_plan
from labeling.storage import Table
from schemas import tables

FLOW = "import sys; from flows.pre_annotate import pre_annotate; pre_annotate(sys.argv[1], 1)"
SHARD = 16


def prepared(installation: Any, lettered: Callable[..., Any], count: int) -> tuple[Path, Any]:
    root, engine = lettered(
        count,
        setup={"sample": 40, "threshold": 0.5},
        embedding={"kind": "none"},
        limits={"shard_records": SHARD},
    )
    text = (root / "project.yaml").read_text()
    (root / "project.yaml").write_text(text.replace("  id: id\n", "  id: id\n  gold: label\n"))
    installation.command("run", root, "--until", "setup")
    return root, engine


def suggestions_hash(root: Path) -> str:
    project, folder = load_project(root)
    table = Table(folder.round(1).suggestions, tables.suggestions(project.label_schema.task))
    return table.content_hash(leave_out=["duration_s"])


def committed(root: Path) -> set[str]:
    project, folder = load_project(root)
    plan = load_plan(folder, 1)
    return ScoreStore(project, folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id).known()


def kill_and_resume(installation: Any, lettered: Callable[..., Any], *, records: int, kills: int) -> None:
    root, engine = prepared(installation, lettered, records)
    project, folder = load_project(root)
    dice = random.Random(11)
    asked_after_commit: list[str] = []
    for _ in range(kills):
        engine.delay_s = 0.01
        before = committed(root)
        engine.asked.clear()
        process = installation.start(FLOW, root)
        wanted = dice.randint(1, SHARD * 2)
        deadline = time.monotonic() + 120
        while sum(engine.asked.values()) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        texts = set(engine.asked)
        records_table = Table(folder.records, tables.records(project.label_schema.task)).read(
            ["record_id", "text"]
        )
        asked_after_commit += [r for r, text in records_table.iter_rows() if text in texts and r in before]
    engine.delay_s = 0.0
    installation.command("run", root, "--until", "pre_annotate")
    killed = suggestions_hash(root)

    assert asked_after_commit == []
    assert len(committed(root)) == records
    control, _ = _uninterrupted(installation, root, engine)
    assert killed == control


def _uninterrupted(installation: Any, root: Path, engine: Any) -> tuple[str, Path]:
    """The same project again in another folder, never killed."""
    import shutil

    other = root.parent / "control"
    other.mkdir()
    for name in ("project.yaml", "guideline.md", "records.jsonl"):
        shutil.copy(root / name, other / name)
    installation.command("run", other, "--until", "pre_annotate")
    return suggestions_hash(other), other


def test_a_flow_killed_three_times_ends_with_the_same_suggestions(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    kill_and_resume(installation, lettered, records=200, kills=3)


def test_scoring_that_takes_several_tasks_ends(installation: Any, lettered: Callable[..., Any]) -> None:
    root, engine = prepared(installation, lettered, 60)
    hasty = "import tasks.pre_annotation as t; t.SECONDS_A_TASK = 0.0\n" + FLOW

    code = installation.start(hasty, root).wait(timeout=120)

    assert code == 0
    assert len(committed(root)) == 60
    assert engine.asked_most() == 1


@pytest.mark.campaign
def test_a_flow_killed_ten_times_over_2000_records_ends_with_the_same_suggestions(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    kill_and_resume(installation, lettered, records=2000, kills=10)
