"""Changing labels, definitions and guideline without touching YAML: the project file stays the truth.

The `schema:` section of the file is written anew, every other line and comment stays as it is. What was there before
and after is kept as versions in the database.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from labeling.database import accounts, settings
from labeling.database.accounts import Right
from labeling.database.connection import Database
from labeling.paths import ProjectFolder
from labeling.project_file import parse_project
from labeling.storage import project_lock, write_bytes
from schemas.errors import ProjectError
from schemas.project import Label, Project
from schemas.values import TaskType

_TOP_LEVEL = re.compile(r"[^\s#-]")
MOST_GUIDELINE = 200_000


@dataclass(frozen=True)
class SchemaDraft:
    """What a lead wants the schema to be."""

    task: TaskType
    instruction: str
    labels: tuple[Label, ...]
    guideline: str


def draft_of(project: Project, folder: ProjectFolder) -> SchemaDraft:
    """The schema as it stands.

    Raises:
        ProjectError: the guideline cannot be read as text.
    """
    schema = project.label_schema
    path = folder.root / schema.guideline
    try:
        guideline = path.read_text("utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise ProjectError(
            str(path),
            found="a guideline that is not UTF-8",
            expected="UTF-8 text",
            next_step=f"Save {path.name} as UTF-8 in an editor; nothing was changed.",
        ) from error
    return SchemaDraft(schema.task, schema.instruction, schema.labels, guideline)


def save_schema(
    db: Database, folder: ProjectFolder, draft: SchemaDraft, *, by: str, note: str, seen: int
) -> tuple[Project, list[str]]:
    """Writes the schema and the guideline and keeps both versions; returns the project and the kinds that changed.

    Args:
        seen: Number of versions the person had before their eyes.

    Raises:
        ManyProblems, ProjectError: the schema is no legal one, or labels change that work was done with.
        VersionConflict: somebody else saved meanwhile.
        BusyError: a flow is at work on the project.
        Forbidden: this person may not.
    """
    file = folder.root / "project.yaml"
    with project_lock(folder.lock, "label schema"):
        raw = file.read_bytes()
        now = parse_project(raw, str(file))
        before = draft_of(now, folder)
        draft = replace(draft, guideline=_lines(draft.guideline))
        _check(before, draft, names_stay_because(db, folder))
        changed_file = with_schema(raw, _section(now, draft))
        project = parse_project(changed_file, str(file))
        with db.write() as conn:
            accounts.require(conn, by, Right.EDIT_SCHEMA)
            kinds = settings.store(
                conn,
                db,
                before={settings.SCHEMA: _text(now), settings.GUIDELINE: before.guideline},
                after={settings.SCHEMA: _text(project), settings.GUIDELINE: draft.guideline},
                by=by,
                note=note,
                seen=seen,
            )
            # Within the transaction: without the files there is no version of them.
            if settings.SCHEMA in kinds:
                write_bytes(file, changed_file)
            if settings.GUIDELINE in kinds:
                write_bytes(folder.root / project.label_schema.guideline, draft.guideline.encode())
    return project, kinds


def names_stay_because(db: Database, folder: ProjectFolder) -> str | None:
    """What was done already with the labels as they stand; None while others may take their place."""
    if decided := settings.decided(db):
        return f"decisions ({decided}) were given"
    return "the model was tried" if folder.round(1).plan.is_file() else None


def _check(before: SchemaDraft, after: SchemaDraft, fixed: str | None) -> None:
    if len(after.guideline) > MOST_GUIDELINE:
        raise ProjectError(
            "the guideline",
            found=f"{len(after.guideline):,} characters",
            expected=f"at most {MOST_GUIDELINE:,}",
            next_step="Shorten it.",
        )
    names = [label.name for label in before.labels], [label.name for label in after.labels]
    if fixed is not None and (names[0] != names[1] or before.task is not after.task):
        raise ProjectError(
            "the labels",
            found=f"other labels, while {fixed} with the ones that stand there",
            expected="the same labels in the same order",
            next_step="Definitions, words, examples and the guideline can change at any time. For other labels start a "
            "new project or, as long as nothing is drafted, write them into project.yaml and have the sample measured "
            "with them: `countersign run PROJECT --until setup`.",
        )


def _section(project: Project, draft: SchemaDraft) -> dict[str, Any]:
    """The `schema:` section; settings that the page does not show stay as they are."""
    kept = project.label_schema.model_dump(mode="json", exclude_defaults=True, exclude={"labels"})
    known = {label.name: label for label in project.label_schema.labels}
    labels = []
    for label in draft.labels:
        own = known.get(label.name, label)
        shown = {"definition": label.definition, "word": label.word, "examples": label.examples}
        labels.append(own.model_copy(update=shown).model_dump(mode="json", exclude_defaults=True))
    return {**kept, "task": draft.task.value, "instruction": draft.instruction, "labels": labels}


def _text(project: Project) -> str:
    """The schema as a person compares it."""
    dumped = project.label_schema.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True, width=100)


def _lines(text: str) -> str:
    """Browsers send CRLF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def with_schema(raw: bytes, section: dict[str, Any]) -> bytes:
    """A project file with another `schema:` section.

    Raises:
        ProjectError: the section cannot be found as a block of its own.
    """
    lines = raw.decode("utf-8").splitlines(keepends=True)
    start = next((number for number, line in enumerate(lines) if re.match(r"schema\s*:", line)), None)
    if start is None:
        raise ProjectError(
            "project.yaml",
            found="no line that begins with schema:",
            expected="the section as a block of its own",
            next_step="Write the file in block style (`countersign init` shows how), or edit it by hand.",
        )
    end = next(
        (number for number in range(start + 1, len(lines)) if _TOP_LEVEL.match(lines[number])), len(lines)
    )
    while end > start + 1 and not lines[end - 1].startswith((" ", "\t", "-")):
        end -= 1  # comments and empty lines before the next section are the next section's
    block = yaml.safe_dump({"schema": section}, sort_keys=False, allow_unicode=True, width=100)
    return ("".join(lines[:start]) + block + "".join(lines[end:])).encode("utf-8")


def labels_from_form(
    names: Sequence[str], definitions: Sequence[str], words: Sequence[str], examples: Sequence[str]
) -> tuple[Label, ...]:
    """Labels from the columns of a form; a row without a name is no label.

    Raises:
        ProjectError: columns of different length: nobody could say which definition is whose.
        pydantic.ValidationError: a name or text that is too long.
    """
    lengths = [len(column) for column in (names, definitions, words, examples)]
    if len(set(lengths)) > 1:
        raise ProjectError(
            "the labels",
            found=f"{lengths[0]} names, {lengths[1]} definitions, {lengths[2]} words, {lengths[3]} examples",
            expected="one of each for every label",
            next_step="Open the page again and send its form whole; nothing was saved.",
        )
    rows = zip(names, definitions, words, examples, strict=True)
    return tuple(
        Label(
            name=name.strip(),
            definition=_lines(definition).strip(),
            word=word.strip(),
            examples=tuple(line.strip() for line in _lines(shown).split("\n") if line.strip()),
        )
        for name, definition, word, shown in rows
        if name.strip()
    )
