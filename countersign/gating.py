"""The gate from the command line: the same decision as the Prefect form."""

from pathlib import Path
from typing import Any

from labeling.closing import signing_files
from labeling.database import accounts, rounds
from labeling.database.connection import Database
from labeling.database.opening import project_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.reviewing import round_figures
from labeling.status import position
from schemas.errors import GateRefused
from schemas.project import Project
from schemas.review import RoundState, SignOff


def decide(
    path: Path, verdict: str, *, by: str, note: str, overlap: int | None = None
) -> tuple[dict[str, Any], bool]:
    """Decides the open gate; the second value is whether people are still missing.

    `overlap` first asks for at most so many annotators a record (a colleague left, or one person labels alone);
    agreement is then measured on fewer records, and the audit chain says so.

    Raises:
        GateRefused: there is no gate to decide, or the name may not sign.
    """
    project, folder = load_project(path)
    with project_database(project, folder) as db:
        if by == "local":
            accounts.local_user(db)
        where = position(project, folder, db)
        if verdict == "reopen":
            number = _signed_round(db)
            rounds.reopen(db, number, by=by, note=note)
            return {"phase": "review", "round": number, "verdict": "reopened", "missing": []}, False
        if where.phase not in ("setup", "review"):
            raise GateRefused(
                "gate",
                found=f"phase {where.phase} of round {where.round}",
                expected="a round or a setup that waits for a signature",
                next_step="`countersign status` says what comes next.",
            )
        if overlap is not None and where.phase == "review":
            rounds.reduce_overlap(db, where.round, overlap, by=_account_id(db, by))
        missing = _missing(project, folder, db, where.phase, where.round)
        if verdict == "approve" and missing:
            return {
                "phase": where.phase,
                "round": where.round,
                "verdict": "refused",
                "missing": missing,
            }, True
        figures: dict[str, Any] | None = None
        if where.phase == "review":
            figures = {
                **round_figures(project, db, where.round),
                "files": signing_files(folder, where.round),
            }
        sign_off = SignOff(verdict="approve" if verdict == "approve" else "reject", signed_by=by, note=note)
        record = rounds.decide_gate(db, where.phase, where.round, sign_off, figures)
        return {
            "phase": where.phase,
            "round": where.round,
            "verdict": record.verdict.value,
            "signed_by": record.signed_by,
            "missing": [],
        }, False


def _account_id(db: Database, name: str) -> str:
    account = accounts.account_by_name(db, name)
    if account is None:
        raise GateRefused(
            "gate", found=f"no account {name!r}", expected="an account name", next_step="Check --by."
        )
    return account.id


def _missing(project: Project, folder: ProjectFolder, db: Database, phase: str, number: int) -> list[str]:
    if phase == "review":
        return (
            rounds.missing(db, number)
            if rounds.state_of(db, number) is not None
            else ["the round is not open yet"]
        )
    return (
        [] if folder.round(1).setup.is_file() else ["the setup sample is not measured yet: `countersign run`"]
    )


def _signed_round(db: Database) -> int:
    for number in reversed(rounds.round_numbers(db)):
        if rounds.state_of(db, number) is RoundState.SIGNED:
            return number
    raise GateRefused(
        "gate",
        found="no signed round",
        expected="one",
        next_step="Only a signature that adjudication has not begun on can be taken back.",
    )
