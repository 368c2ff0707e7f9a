"""`countersign check`: everything that would stop a run later, found now."""

import shutil
from pathlib import Path

from labeling.database.connection import require_answer
from labeling.database.opening import database_url
from labeling.engines.opening import connect_embedder, connect_engine
from labeling.engines.self_test import require, self_test
from labeling.ingest import why_no_record
from labeling.label_lists import listing_for
from labeling.paths import ProjectFolder
from labeling.planned import load_planned
from labeling.prompts import bind, label_codes, load_template
from labeling.storage import project_lock
from labeling.task_types import task_type
from schemas.errors import LabelingError, ManyProblems, ProjectError, StorageError
from schemas.project import Project

LEAST_FREE_BYTES = 1_000_000_000
LOOKED_AT = 1000  # rows of each source


def problems_of(path: Path) -> list[LabelingError]:
    """Problems of a project, in the order a user would mend them; empty when it can be run."""
    try:
        project, folder = load_planned(path)
    except ManyProblems as error:
        return list(error.problems)
    except LabelingError as error:
        return [error]
    problems: list[LabelingError] = []
    for step in (_guideline, _sources, _database, _disk, _engine, _embedder, _locks):
        try:
            step(project, folder)
        except ManyProblems as error:
            problems += error.problems
        except LabelingError as error:
            problems.append(error)
    return problems


def _guideline(project: Project, folder: ProjectFolder) -> None:
    path = folder.root / project.label_schema.guideline
    if not path.is_file():
        raise ProjectError(
            "schema.guideline",
            found=f"no file {path}",
            expected="a Markdown file for the annotators",
            next_step="Write it; they see it beside every record.",
        )
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(
            "schema.guideline",
            found=f"{path}, which cannot be read ({error})",
            expected="Markdown in UTF-8",
            next_step="Save it as UTF-8 text.",
        ) from error


def _sources(project: Project, folder: ProjectFolder) -> None:
    for source in project.sources:
        wrong = why_no_record(project, source, (folder.root / source.path).resolve(), rows=LOOKED_AT)
        if wrong is not None:
            raise ProjectError(
                f"sources: {source.path}",
                found=f"no usable row among the first {LOOKED_AT:,} ({wrong})",
                expected="records",
                next_step="Look at the file; `countersign run` sets bad rows aside with a reason each.",
            )


def _database(project: Project, folder: ProjectFolder) -> None:
    url = database_url(project)
    if url is not None:
        require_answer(url)


def _embedder(project: Project, folder: ProjectFolder) -> None:
    embedder = connect_embedder(project)
    if embedder is not None:
        embedder.close()


def _disk(project: Project, folder: ProjectFolder) -> None:
    free = shutil.disk_usage(folder.root).free
    if free < LEAST_FREE_BYTES:
        raise StorageError(
            str(folder.root),
            found=f"{free / 1e9:.1f} GB free",
            expected=f"at least {LEAST_FREE_BYTES / 1e9:.0f} GB",
            next_step="Free some space.",
        )


def require_task(project: Project) -> None:
    """Raises ProjectError for a task type that the flows do not label: before people are asked for anything."""
    if not task_type(project).one_token:
        raise ProjectError(
            "schema.task",
            found=project.label_schema.task.value,
            expected="classification",
            next_step="The flows of this version label classification projects; the other task types follow.",
        )


def _engine(project: Project, folder: ProjectFolder) -> None:
    require_task(project)
    engine = connect_engine(project)
    try:
        labels, style = project.label_schema.labels, project.prompts.codes
        most = listing_for(project, engine).most
        codes = label_codes(labels, engine.first_token, style=style, most=most)
        for name in project.prompts.files:
            prompt = bind(load_template(name, folder.root), project, codes)
            used = len(engine.tokenize(prompt.around("")).ids)
            if used > engine.context - 64:
                raise ProjectError(
                    f"prompts.files: {name}",
                    found=f"{used} tokens before any record",
                    expected=f"at most {engine.context - 64}",
                    next_step="Shorten the definitions, or raise engine.context.",
                )
        # No more than the engine tells: with more labels each record is asked about those nearest to it.
        told = bind(
            prompt.template, project, label_codes(labels[: engine.tells], engine.first_token, style=style)
        )
        require(self_test(engine, told, digest=project.engine.digest))
    finally:
        engine.close()


def _locks(project: Project, folder: ProjectFolder) -> None:
    with project_lock(folder.lock, "check"):
        pass
