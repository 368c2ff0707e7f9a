"""The lead's page for labels, definitions and guideline: no YAML needed, every version kept and compared."""

import difflib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from starlette.datastructures import FormData

from labeling.database import accounts, settings
from labeling.database.accounts import Right
from labeling.schema_editing import (
    SchemaDraft,
    draft_of,
    labels_from_form,
    names_stay_because,
    save_schema,
)
from review_app.access import needs
from review_app.pages import problem_page, render
from schemas.errors import LabelingError, ProjectError
from schemas.project import Label
from schemas.values import TaskType

router = APIRouter()
KINDS = {settings.SCHEMA: "Labels", settings.GUIDELINE: "Guideline"}
EMPTY_ROWS = 2
TASK_WORDS = {
    TaskType.CLASSIFICATION: "One label a record",
    TaskType.MULTILABEL: "Any number of labels a record",
    TaskType.ENTITIES: "Places in the text",
    TaskType.PAIRS: "Instruction and answer",
}


async def _sent(request: Request) -> FormData:
    return await request.form()


@router.get("/schema")
@needs(Right.EDIT_SCHEMA)
def schema_page(request: Request, saved: bool = False) -> Response:
    """What stands there, to be changed."""
    app = request.app.state.settings
    return _page(request, draft_of(app.project, app.folder), saved=saved)


@router.post("/schema")
@needs(Right.EDIT_SCHEMA)
def save(
    request: Request,
    form: Annotated[FormData, Depends(_sent)],
    note: Annotated[str, Form(max_length=500)] = "",
    seen: Annotated[int, Form(ge=0)] = 0,
) -> Response:
    """Writes the project file and the guideline, or says what is wrong with what was sent and keeps it on the page."""
    db, app = request.app.state.db, request.app.state.settings
    draft = draft_of(app.project, app.folder)
    try:
        draft = _draft(form, draft.task)
        save_schema(db, app.folder, draft, by=request.state.account.id, note=note.strip(), seen=seen)
    except ValidationError as error:
        problem: LabelingError = _said(error)
    except LabelingError as error:
        problem = error
    else:
        return RedirectResponse("/schema?saved=true", 303)
    return _page(request, draft, problem=problem, note=note)


@router.get("/schema/versions/{kind}/{number}")
@needs(Right.EDIT_SCHEMA)
def version_page(request: Request, kind: str, number: int) -> Response:
    """What one version changed."""
    told = {version.version: version for version in settings.versions(request.app.state.db, kind)}
    if kind not in KINDS or number not in told:
        return problem_page(request, 404, "no such version", "Go back to the labels.")
    version, before = told[number], told.get(number - 1)
    return render(
        request,
        "version.html",
        version=version,
        kind=KINDS[kind],
        lines=_difference("" if before is None else before.content, version.content),
        by=_name(request, version.by),
    )


def _draft(form: FormData, task: TaskType) -> SchemaDraft:
    def column(name: str) -> list[str]:
        return [str(value) for value in form.getlist(name)]

    labels = labels_from_form(column("label"), column("definition"), column("word"), column("examples"))
    chosen = str(form.get("task") or task.value)
    return SchemaDraft(
        TaskType(chosen) if chosen in {kind.value for kind in TaskType} else task,
        str(form.get("instruction", "")).strip(),
        labels,
        str(form.get("guideline", "")),
    )


def _said(error: ValidationError) -> LabelingError:
    first = error.errors()[0]
    return ProjectError(
        f"the labels: {first['loc'][-1]}",
        found=first["msg"],
        expected="a name of at most 100 characters and a definition of at most 4,000",
        next_step="Shorten it and save again.",
    )


def _difference(before: str, after: str) -> list[tuple[str, str]]:
    """(kind, line) of a comparison: added, removed, same, or gap between two places."""
    names = {"+": "added", "-": "removed", " ": "same"}
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3))[2:]
    return [("gap", "…") if line.startswith("@@") else (names[line[0]], line[1:]) for line in lines]


def _name(request: Request, account_id: str) -> str:
    if account_id == accounts.OPERATOR:
        return "the project's files"
    names = {person.id: person.display_name for person in accounts.people(request.app.state.db)}
    return names.get(account_id, account_id)


def _page(
    request: Request,
    draft: SchemaDraft,
    *,
    problem: LabelingError | None = None,
    saved: bool = False,
    note: str = "",
) -> Response:
    db = request.app.state.db
    stored = {kind: settings.versions(db, kind) for kind in KINDS}
    newest_first = sorted(
        (version for told in stored.values() for version in told),
        key=lambda version: version.at,
        reverse=True,
    )
    context: dict[str, Any] = {
        "draft": draft,
        "rows": [*draft.labels, *(Label.model_construct(name="") for _ in range(EMPTY_ROWS))],
        "tasks": TASK_WORDS,
        "fixed": names_stay_because(db, request.app.state.settings.folder),
        "versions": [(version, KINDS[version.kind], _name(request, version.by)) for version in newest_first],
        "seen": len(newest_first),
        "problem": problem,
        "saved": saved,
        "note": note,
    }
    return render(request, "schema.html", 200 if problem is None else 422, **context)
