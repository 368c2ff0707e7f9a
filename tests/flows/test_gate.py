"""The gate: a fact in the database, signalled through a Prefect run that waits without a process."""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from deployed import prefect_at

from labeling.closing import signing_files
from labeling.database import accounts, chain, queue, rounds
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.task_types import task_type
from schemas.review import Action, DecisionIn, Role, RoundState


def label_everything(root: Path, says: Callable[[str], str] | None = None) -> None:
    """Two people decide all that is open, straight through the queue; `says` gives the label of a text."""
    project, folder = load_project(root)
    kind = task_type(project)
    with project_database(project, folder) as db:
        people = [person(db, Role.ANNOTATOR, f"p{index}") for index in range(2)]
        busy = True
        while busy:
            busy = False
            for who in people:
                held = queue.claim(db, who.id)
                if held is None:
                    continue
                busy = True
                value = (
                    next(label for label in kind.labels if label in held.text)
                    if says is None
                    else says(held.text)
                )
                same = held.suggestion is not None and held.suggestion["value"] == value
                queue.decide(
                    db,
                    who.id,
                    DecisionIn(
                        assignment_id=held.assignment_id,
                        idempotency_key=secrets.token_hex(12),
                        expected_version=held.version,
                        action=Action.ACCEPT if same else Action.CORRECT,
                        value=value,
                        seconds=1.0,
                    ),
                    check_value=kind.check,
                )


def person(db: Any, role: Role, name: str, password: str | None = None) -> accounts.Account:
    known = accounts.account_by_name(db, name)
    if known is not None:
        return known
    token = accounts.invite(db, role, name, by=accounts.OPERATOR)
    return accounts.accept_invitation(db, token, name, password or secrets.token_urlsafe(16))


@pytest.fixture
def at_gate(installation: Any, lettered: Callable[..., Any]) -> Iterator[tuple[Any, Path, Any]]:
    """A project whose round 1 is open, with a review run of its deployment waiting at the gate."""
    from countersign.daily import ensure_gate, wait_for_deployment
    from deployments.services import prefect_environment, start_runner

    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5})
    text = (root / "project.yaml").read_text()
    name = f"gate_{secrets.token_hex(4)}"
    text = text.replace("  id: id\n", "  id: id\n  gold: label\n").replace("name: small", f"name: {name}")
    (root / "project.yaml").write_text(text)
    installation.command("run", root, check=3)
    project, folder = load_project(root)
    with project_database(project, folder) as db:
        person(db, Role.MANAGER, "lena")
    before = dict(os.environ)
    os.environ.update(prefect_environment(installation.url))
    runner = start_runner(installation.url, [root], rehearsal=True)
    try:
        wait_for_deployment(f"review/{name}")
        run = ensure_gate(project, folder)
        assert run == ensure_gate(project, folder), "asking again must not make a second run"
        await_state(run, "PAUSED")
        yield installation, root, run
    finally:
        runner.stop()
        os.environ.clear()
        os.environ.update(before)


def await_state(run: Any, wanted: str, *, after: Any = None) -> Any:
    """Waits for a state type (a newer one than `after`); returns the state."""
    from prefect.client.orchestration import get_client

    deadline = time.monotonic() + 150
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            state = client.read_flow_run(run).state
            if state is not None and state.type.value == wanted and (after is None or state.id != after.id):
                return state
            assert state is None or state.type.value not in ("FAILED", "CRASHED"), state
            time.sleep(0.3)
    raise AssertionError(f"no {wanted} within 150 s; last state {state}")


def sign(run: Any, **form: str) -> None:
    """Sends the form from a thread with an event loop, where Prefect would hand back a coroutine."""
    from countersign.daily import resume

    async def send() -> None:
        resume(run, form)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, send()).result()


@pytest.mark.campaign
def test_the_gate_command_wakes_the_run_that_waits_and_has_one_wait_again(
    at_gate: tuple[Any, Path, Any],
) -> None:
    from countersign.daily import ensure_gate

    installation, root, run = at_gate
    label_everything(root)

    _, answer = installation.command("gate", root, "approve", "--by", "lena", "--note", "from a terminal")

    assert answer["verdict"] == "approve" and answer["resumed"] is True
    await_state(run, "COMPLETED")

    _, undone = installation.command("gate", root, "reopen", "--by", "lena", "--note", "one more look")

    assert undone["verdict"] == "reopened" and undone["waits_again"] is True
    await_state(ensure_gate(*load_project(root)), "PAUSED")
    _, again = installation.command("gate", root, "approve", "--by", "lena", "--note", "looked")
    assert again["resumed"] is True


def test_the_form_of_the_gate_passes_a_finished_round_only(at_gate: tuple[Any, Path, Any]) -> None:
    installation, root, run = at_gate
    project, folder = load_project(root)

    first = await_state(run, "PAUSED")
    sign(run, verdict="approve", signed_by="lena", note="too early")
    second = await_state(run, "PAUSED", after=first)
    with project_database(project, folder) as db:
        refused = [
            entry["payload"]["answer"] for entry in chain.entries(db) if entry["action"] == "gate.form"
        ]
        assert rounds.state_of(db, 1) is RoundState.OPEN
    assert len(refused) == 1
    assert "not finished" in refused[0]

    label_everything(root)
    sign(run, verdict="approve", signed_by="nobody-knows-me", note="")
    third = await_state(run, "PAUSED", after=second)
    with project_database(project, folder) as db:
        assert rounds.state_of(db, 1) is RoundState.OPEN

    sign(run, verdict="reject", signed_by="lena", note="look at the beta ones again")
    fourth = await_state(run, "PAUSED", after=third)
    with project_database(project, folder) as db:
        record = rounds.gate_record(db, "review", 1)
        assert record is not None
        assert record.note == "look at the beta ones again"
        assert rounds.state_of(db, 1) is RoundState.OPEN

    sign(run, verdict="approve", signed_by="lena", note="done")
    await_state(run, "COMPLETED", after=fourth)
    with project_database(project, folder) as db:
        assert rounds.state_of(db, 1) is RoundState.SIGNED
        assert rounds.gate_events(db, "review", 1)[-1]["figures"]["files"] == signing_files(folder, 1)
    code, answer = installation.command("run", root, "--until", "qa", check=None)
    assert answer["phase"] == "qa", answer
    assert code in (0, 3)


def test_a_run_at_the_gate_of_a_round_that_was_signed_elsewhere_makes_way(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Suspended

    from countersign.daily import ensure_gate

    root, _ = lettered(30)
    name = f"left-{secrets.token_hex(4)}"
    text = (root / "project.yaml").read_text()
    (root / "project.yaml").write_text(text.replace("name: small", f"name: {name}"))
    project, folder = load_project(root)
    with project_database(project, folder) as db:
        rounds.open_round(db, 2, state=RoundState.OPEN, rehearsal=False, actor="flow")
    with prefect_at(installation.url), get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow_from_name("review"), name)
        waiting = client.create_flow_run_from_deployment(deployment)
        client.set_flow_run_state(waiting.id, Suspended(pause_key="review-1-1"), force=True)

        run = ensure_gate(project, folder)

        assert run not in (None, str(waiting.id))
        assert client.read_flow_run(waiting.id).state.is_cancelled()
        assert client.read_flow_run(run).parameters["run"]["round_number"] == 2
        client.set_flow_run_state(run, Suspended(pause_key="review-2-3"), force=True)
        assert ensure_gate(project, folder) == run


def test_gate_command_names_what_is_missing_and_signs_when_nothing_is(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5})
    text = (root / "project.yaml").read_text()
    (root / "project.yaml").write_text(text.replace("  id: id\n", "  id: id\n  gold: label\n"))
    installation.command("run", root, check=3)
    project, folder = load_project(root)
    with project_database(project, folder) as db:
        person(db, Role.MANAGER, "lena")
        person(db, Role.ANNOTATOR, "ana")

    _, fewer = installation.command("gate", root, "approve", "--by", "lena", "--overlap", 1, check=3)
    assert not any("more annotators" in line for line in fewer["missing"])
    _, early = installation.command("gate", root, "approve", "--by", "lena", check=3)
    label_everything(root)
    _, wrong = installation.command("gate", root, "approve", "--by", "ana", check=1)
    _, signed = installation.command("gate", root, "approve", "--by", "lena", "--note", "checked")
    _, undone = installation.command("gate", root, "reopen", "--by", "lena", "--note", "one more look")
    _, again = installation.command("gate", root, "approve", "--by", "lena", "--note", "checked again")

    assert early["verdict"] == "refused"
    assert early["missing"]
    assert wrong["problems"][0]["next"]
    assert (signed["verdict"], signed["missing"]) == ("approve", [])
    assert (undone["verdict"], undone["waits_again"]) == ("reopened", False), "no server has this project"
    assert again["verdict"] == "approve"
    with project_database(project, folder) as db:
        kept = rounds.gate_events(db, "review", 1)[-1]["figures"]["files"]
    assert kept == signing_files(folder, 1)
    assert "rounds/01/suggestions/manifest.jsonl" in kept and "rounds/01/queue.json" in kept
