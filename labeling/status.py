"""Where a project stands, read from its tables and its database; nothing is remembered anywhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labeling.database import rounds
from labeling.database.connection import Database
from labeling.paths import ProjectFolder
from labeling.record_store import record_ids, records_table
from labeling.storage import Table, read_json
from schemas import tables
from schemas.project import Project
from schemas.review import RoundState, Verdict
from schemas.values import canonical_json

PHASES = ("setup", "pre_annotate", "review", "qa", "export", "iterate")


@dataclass(frozen=True)
class Position:
    """The phase that is next (or waits for people)."""

    phase: str
    round: int
    waiting_for: list[str] = field(default_factory=list)


def position(project: Project, folder: ProjectFolder, db: Database) -> Position:
    """The first phase that is not done, from the first round on; done phases are never repeated."""
    if not folder.round(1).plan.is_file() or not setup_passed(folder, db):
        return Position("setup", 1, _setup_waits(folder, db))
    number = 1
    while True:
        step = _of_round(project, folder, db, number)
        if step is not None:
            return step
        number += 1


def setup_word(db: Database, figures: Mapping[str, Any]) -> str | None:
    """What last happened at the setup gate, if it was about these figures: the setup may have been measured anew."""
    events = rounds.gate_events(db, "setup", 1)
    if not events or canonical_json(events[-1]["figures"]) != canonical_json(figures):
        return None
    return str(events[-1]["event"])


def setup_passed(folder: ProjectFolder, db: Database) -> bool:
    """Whether the drafts are good enough by their figures or by a lead's word."""
    if not folder.round(1).setup.is_file():
        return False
    figures = read_json(folder.round(1).setup)
    return figures["verdict"] == "pass" or setup_word(db, figures) == Verdict.APPROVE.value


def _setup_waits(folder: ProjectFolder, db: Database) -> list[str]:
    if folder.round(1).setup.is_file():
        return [f"the setup gate: {read_json(folder.round(1).setup)['sentence']}"]
    if rounds.state_of(db, 1) is RoundState.SAMPLING:
        open_count = rounds.progress(db, 1).open
        return [f"{open_count} sample records to be labelled blind"] if open_count else []
    return []


def _of_round(project: Project, folder: ProjectFolder, db: Database, number: int) -> Position | None:
    task = project.label_schema.task
    here = folder.round(number)
    if not Table(here.rejected, tables.rejected(task)).exists:
        return Position("pre_annotate", number)
    state = rounds.state_of(db, number)
    if state in (None, RoundState.SAMPLING):
        return Position("review", number)
    if state is RoundState.OPEN:
        return Position("review", number, rounds.missing(db, number) or ["the lead's signature"])
    if state is not RoundState.CLOSED or not here.report.is_file():
        waits = rounds.missing(db, number) if state is RoundState.ADJUDICATING else []
        return Position("qa", number, waits)
    if not (folder.release(number) / "manifest.json").is_file():
        return Position("export", number)
    if not folder.round(number + 1).plan.is_file():
        return Position("iterate", number)
    return None


def all_decided(project: Project, folder: ProjectFolder, number: int) -> bool:
    """Whether every record was labelled by people in the rounds up to `number`: then there is no next round."""
    layout = tables.annotations(project.label_schema.task)
    seen: set[str] = set()
    for done in range(1, number + 1):
        seen.update(Table(folder.round(done).annotations, layout).read(["record_id"])["record_id"].to_list())
    return set(record_ids(project, folder)) <= seen


def status(project: Project, folder: ProjectFolder, db: Database) -> dict[str, Any]:
    """What `countersign status` prints."""
    where = position(project, folder, db)
    task = project.label_schema.task
    numbers = rounds.round_numbers(db)
    last = max(numbers, default=0)
    progress = rounds.progress(db, last) if last else None
    figures_path = next(
        (folder.round(n).figures for n in range(last, 0, -1) if folder.round(n).figures.is_file()), None
    )
    figures = read_json(figures_path) if figures_path is not None else None
    quarantine = Table(folder.quarantine, tables.quarantine(task))
    return {
        "project": project.name,
        "phase": where.phase,
        "round": where.round,
        "records": records_table(project, folder).rows(),
        "suggested": Table(folder.round(where.round).suggestions, tables.suggestions(task)).rows(),
        "reviewed": 0 if progress is None else progress.done,
        "queue": None
        if progress is None
        else {"items": progress.items, "open": progress.open, "per_annotator": progress.per_annotator},
        "quarantined": quarantine.rows(),
        "waiting_for": where.waiting_for,
        "last_figures": None
        if figures is None
        else {key: figures[key] for key in ("round", "accuracy", "gain", "human_labels", "how")},
        "rehearsal": db.rehearsal,
    }
