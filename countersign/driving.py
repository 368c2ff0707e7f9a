"""Drives the flows from the command line: a Prefect server on loopback, phases in this process."""

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from countersign.output import say
from deployments.services import QUIET_ENVIRONMENT, prefect_environment, start_prefect_server
from labeling.database.opening import project_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.status import PHASES, all_decided, position
from schemas.errors import LabelingError
from schemas.project import Project

MOST_STEPS = 200
DRAIN_TIMEOUT_S = 10.0


@contextmanager
def prefect_running() -> Iterator[str]:
    """A Prefect server for the length of a block, and an environment in which flows find it."""
    os.environ.update(QUIET_ENVIRONMENT)
    server = start_prefect_server()
    os.environ.update(prefect_environment(server.url))
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _log_for_people()
    try:
        yield server.url
    finally:
        _flush_logs()
        server.stop()


class _Indented(logging.Formatter):
    """What a flow says, under the line of its phase; the level only where somebody should look."""

    def format(self, record: logging.LogRecord) -> str:
        # A sentence for people; the lines of code it came through tell them nothing.
        if _is_told_anyway(record):
            record = copy.copy(record)
            record.exc_info = record.exc_text = None
        told = super().format(record)
        return f"  {told}" if record.levelno <= logging.INFO else f"  {record.levelname}: {told}"


def _not_of_the_engine(record: logging.LogRecord) -> bool:
    """Leaves out how Prefect's engine begins and ends each run; its UI keeps that, and this command ends with the error
    itself."""
    if record.module not in ("flow_engine", "task_engine"):
        return True
    said = str(record.msg)
    if said.startswith("Finished in state"):
        return False
    if _is_told_anyway(record):
        return record.levelno < logging.ERROR  # that a task is tried again is news
    return record.levelno > logging.INFO


def _is_told_anyway(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and isinstance(record.exc_info[1], LabelingError)


def _log_for_people() -> None:
    """Makes this terminal show what our flows say, and not Prefect's own bookkeeping; the server gets all of it."""
    from prefect.logging.configuration import ensure_logging_setup
    from prefect.logging.handlers import PrefectConsoleHandler

    ensure_logging_setup()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.setFormatter(_Indented())
            handler.addFilter(_not_of_the_engine)


def _flush_logs() -> None:
    """Sends what the flows logged while the server still listens; afterwards Prefect would try for a minute."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=DRAIN_TIMEOUT_S)
    EventsWorker.drain_all(timeout=DRAIN_TIMEOUT_S)


def phase_flow(phase: str) -> Any:
    """The flow of a phase as the command line runs it. Imported late: Prefect costs a second."""
    from flows.export import export
    from flows.iterate import iterate
    from flows.pre_annotate import pre_annotate
    from flows.qa import qa
    from flows.review import open_review
    from flows.setup import setup

    return {
        "setup": setup,
        "pre_annotate": pre_annotate,
        "review": open_review,
        "qa": qa,
        "export": export,
        "iterate": iterate,
    }[phase]


def run_phase(phase: str, root: Path, number: int, *, rehearsal: bool = False) -> dict[str, Any]:
    """Runs one phase; its answer says whether it waits for people."""
    flow = phase_flow(phase)
    arguments: dict[str, Any] = {"project": str(root)}
    if phase != "setup":
        arguments["round_number"] = number
    if phase in ("setup", "review"):
        arguments["rehearsal"] = rehearsal
    answer: dict[str, Any] = flow(run=arguments)
    return answer


def drive(root: Path, *, until: str | None, only_round: int | None) -> dict[str, Any]:
    """Runs phase after phase from where the project stands; stops at people, at the goal, or when all is labelled.

    The goal is phase `until` of round `only_round` (of the round at hand when only the phase is given, the last phase
    when only the round is). Where the project is past it already, nothing is run, but for the phase that plans a round
    nothing of which is drafted yet: after another model or prompt was taken that plan is made again.
    """
    answer: dict[str, Any] | None = None
    goal: tuple[int, int] | None = None
    for _ in range(MOST_STEPS):
        project, folder = load_project(root)
        where = _where(project, folder)
        if goal is None and (until is not None or only_round is not None):
            last = where.round if only_round is None else only_round
            goal = (last, PHASES.index(until) if until else len(PHASES))
        if goal is not None and (where.round, PHASES.index(where.phase)) > goal:
            planned = ("setup", 1) if where.round == 1 else ("iterate", where.round - 1)
            if answer is None and where.phase == "pre_annotate" and (until, goal[0]) == planned:
                say(f"Round {goal[0]}, phase {until} again")
                return run_phase(planned[0], folder.root, goal[0])
            break
        if (
            where.phase == "pre_annotate"
            and where.round > 1
            and all_decided(project, folder, where.round - 1)
        ):
            done = answer or {"phase": "iterate", "round": where.round - 1}
            return {**done, "state": "finished", "waiting_for": []}
        say(f"Round {where.round}, phase {where.phase}")
        answer = run_phase(where.phase, folder.root, where.round)
        if answer["state"] == "waiting":
            break
    reached = {
        "phase": until or "iterate",
        "round": goal[0] if goal else 1,
        "state": "done",
        "waiting_for": [],
    }
    return answer or reached


def _where(project: Project, folder: ProjectFolder) -> Any:
    with project_database(project, folder) as db:
        return position(project, folder, db)
