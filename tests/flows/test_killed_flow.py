"""SIGKILL of the flow process: what was committed is never asked again, nothing is missing, the table is the same."""

import json
import random
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_gate import label_everything, person

from labeling.cascade import left_to_student
from labeling.database import queue
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.record_store import Vectors, record_ids, texts_of
from labeling.score_store import ScoreStore
from labeling.setup import load_plan
from labeling.storage import Table
from labeling.task_types import task_type
from schemas import tables
from schemas.review import Role

FLOW = (
    "import sys; from flows.pre_annotate import pre_annotate\n"
    "pre_annotate(run={'project': sys.argv[1], 'round_number': 1})"
)
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


def committed(root: Path, number: int = 1) -> set[str]:
    project, folder = load_project(root)
    plan = load_plan(folder, number)
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
    engine.asked.clear()  # setup asked the sample a second time, with the labels listed the other way round
    hasty = "import tasks.pre_annotation as t; t.SECONDS_A_TASK = 0.0\n" + FLOW

    code = installation.start(hasty, root).wait(timeout=120)

    assert code == 0
    assert len(committed(root)) == 60
    assert engine.asked_most() == 1


@pytest.mark.campaign
def test_a_killed_cascade_asks_the_same_records_and_no_others(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, engine = with_a_better_prompt(installation, lettered, 320)
    project, folder = load_project(root)
    plan = load_plan(folder, 2)
    assert plan.cascade is not None and plan.cascade.alone > 0
    left = left_to_student(project, folder, plan, Vectors.load(project, folder))
    texts = texts_of(project, folder, record_ids(project, folder))
    engine.asked.clear()
    engine.delay_s = 0.01
    process = installation.start(FLOW.replace("'round_number': 1", "'round_number': 2"), root)
    deadline = time.monotonic() + 120
    while sum(engine.asked.values()) < 3 * SHARD and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    engine.delay_s = 0.0

    installation.command("run", root, "--until", "pre_annotate")

    assert not any(texts[record_id] in engine.asked for record_id in left - committed(root, 2))
    assert len(committed(root, 2)) == 320 - plan.cascade.alone
    assert Table(
        folder.round(2).suggestions, tables.suggestions(project.label_schema.task)
    ).rows() == 320 - len((plan.stack or {})["reference_ids"])


def with_a_better_prompt(installation: Any, lettered: Callable[..., Any], count: int) -> tuple[Path, Any]:
    """A project at pre_annotate of round 2, with a cascade and a prompt that replaced the first one."""
    root, engine = lettered(
        count,
        prompts={"files": ["mine.jinja"], "exemplars": 0},
        setup={"sample": 40, "threshold": 0.1},
        review={"round_records": 40, "blind_slice": 20, "overlap_share": 0.0},
        limits={"shard_records": SHARD},
        iteration={"cascade": 0.6},
    )
    text = (root / "project.yaml").read_text()
    name = f"cascade-{secrets.token_hex(4)}"
    text = text.replace("  id: id\n", "  id: id\n  gold: label\n").replace("name: small", f"name: {name}")
    (root / "project.yaml").write_text(text)
    # The engine looks for the record after "Text: "; the first prompt hides it, the second shows it.
    (root / "mine.jinja").write_text("{{ text }}\nText: nothing\nLabel:")
    installation.command("run", root, check=None)
    project, folder = load_project(root)
    with project_database(project, folder) as db:
        person(db, Role.MANAGER, "lena")
    if not folder.round(1).queue.is_file():
        installation.command("gate", root, "approve", "--by", "lena")
        installation.command("run", root, check=3)
    truth = {row["text"]: row["label"] for row in map(json.loads, (root / "records.jsonl").open())}
    label_everything(root, truth.__getitem__)
    installation.command("gate", root, "approve", "--by", "lena")
    (root / "mine.jinja").write_text("Labels: alpha, beta.\nText: {{ text }}\nLabel:")
    installation.command("run", root, "--until", "qa", check=None)
    texts = texts_of(project, folder, record_ids(project, folder))
    with project_database(project, folder) as db:
        judge = person(db, Role.REVIEWER, "rex").id
        for dispute in queue.disputes(db, judge, 1):
            queue.adjudicate(
                db,
                judge,
                1,
                dispute.record_id,
                value=truth[texts[dispute.record_id]],
                expected_version=dispute.version,
                idempotency_key=secrets.token_hex(12),
                check_value=task_type(project).check,
            )
    installation.command("run", root, "--until", "iterate")
    return root, engine


@pytest.mark.campaign
def test_a_flow_killed_ten_times_over_2000_records_ends_with_the_same_suggestions(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    kill_and_resume(installation, lettered, records=2000, kills=10)
