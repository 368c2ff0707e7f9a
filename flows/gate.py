"""Where a person must sign: the flow suspends with a typed form and holds no process while it waits.

The gate is a fact in the database; Prefect carries the signal. On resume a flow runs again from its top, so every form
that was sent in is handled once: what came of it is in the audit chain under the flow run's id.
"""

from typing import Any, Literal

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from labeling.closing import signing_files
from labeling.database import chain, rounds
from labeling.database.connection import Database
from labeling.database.opening import project_database
from labeling.paths import ProjectFolder
from labeling.reviewing import round_figures
from labeling.service_records import review_url
from schemas.errors import LabelingError
from schemas.project import Project
from schemas.review import GateRecord, SignOff, Verdict
from tasks.artifacts import artifact_key


class GateForm(RunInput):
    """Sign-off: approve closes what was reviewed; reject sends it back with your note as the reason."""

    verdict: Literal["approve", "reject"] = Field(description="approve closes the round; reject reopens it")
    signed_by: str = Field(description="Your account name in the review app")
    note: str = Field(default="", description="What you checked, or why it goes back")


def wait_at_gate(project: Project, folder: ProjectFolder, phase: str, number: int) -> GateRecord:
    """Returns the approval of a gate, suspending the flow as often as needed until there is one.

    Only from a top-level flow of a deployment. The sign-off given with `countersign gate` counts just the same.
    """
    asked = 0
    while True:
        with project_database(project, folder) as db:
            record = rounds.gate_record(db, phase, number)
            if record is not None and record.verdict is Verdict.APPROVE:
                return record
            asked += 1
            text = gate_text(project, db, phase, number)
            told = _earlier_answer(db, asked - 1)
        create_markdown_artifact(
            text, key=artifact_key(project.name, "gate"), description=f"Gate of {phase}, round {number}"
        )
        form = GateForm.with_initial_data(description=(f"**{told}**\n\n" if told else "") + text)
        answer = suspend_flow_run(wait_for_input=form, key=f"{phase}-{number}-{asked}")
        _handle(project, folder, phase, number, asked, answer)


def _object(asked: int) -> str:
    return f"flow-run:{flow_run.get_id()}:{asked}"


def _earlier_answer(db: Database, asked: int) -> str:
    entries = chain.entries(db, object=_object(asked)) if asked else []
    return str(_payload(entries[-1])["answer"]) if entries else ""


def _payload(entry: dict[str, Any]) -> dict[str, Any]:
    payload = entry["payload"]
    assert isinstance(payload, dict)
    return payload


def _handle(
    project: Project, folder: ProjectFolder, phase: str, number: int, asked: int, answer: GateForm
) -> None:
    """Signs with a form once; a form that was handled before a restart is not handled again."""
    with project_database(project, folder) as db:
        if chain.entries(db, object=_object(asked)):
            return
        figures = gate_figures(project, db, phase, number)
        if phase == "review":
            figures["files"] = signing_files(folder, number)
        sign_off = SignOff(verdict=answer.verdict, signed_by=answer.signed_by, note=answer.note)
        try:
            record = rounds.decide_gate(db, phase, number, sign_off, figures)
            told = f"{record.verdict.value} by {record.signed_by} is recorded."
            if record.verdict is Verdict.REJECT:
                told = f"Sent back by {record.signed_by}: {record.note} Sign again once that is done."
        except LabelingError as error:
            told = f"Not accepted: found {error.found}; expected {error.expected}. {error.next_step}"
        with db.write() as connection:
            chain.append(
                connection,
                actor="flow",
                action="gate.form",
                object=_object(asked),
                payload={"phase": phase, "round": number, "answer": told, "form": sign_off.model_dump()},
                utc=db.now(),
            )
    get_run_logger().info(told)


def gate_figures(project: Project, db: Database, phase: str, number: int) -> dict[str, Any]:
    """The figures a signer is shown and that are stored with the verdict."""
    if phase == "review":
        return dict(round_figures(project, db, number))
    events = rounds.gate_events(db, phase, number)
    return dict(events[-1]["figures"]) if events else {}


def gate_text(project: Project, db: Database, phase: str, number: int) -> str:
    """The figures of the gate as Markdown, for the form and the artifact."""
    figures = gate_figures(project, db, phase, number)
    if phase != "review":
        title = f"### {project.title or project.name}: {phase}"
        return f"{title}\n\n{figures.get('sentence', '')}\n\nApprove to go on all the same."
    missing = figures["missing"]
    rows = [
        ("records done", f"{figures['done']} of {figures['items']}"),
        ("decisions", f"{figures['decisions']} by {figures['annotators']} people"),
        ("suggestions accepted", f"{figures['accepted']} of {figures['assisted']} shown"),
        (
            "median time a record",
            "-" if figures["seconds_median"] is None else f"{figures['seconds_median']:.1f} s",
        ),
        ("skips", str(figures["skips"])),
    ]
    table = "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    verdict = (
        "**Not finished yet:** " + " ".join(missing)
        if missing
        else "Nothing is missing; the round can be signed."
    )
    url = review_url(project.name)
    link = f"\n\nReview app: <{url}>" if url else ""
    return f"### {project.title or project.name}: round {number}\n\n{table}\n\n{verdict}{link}"
