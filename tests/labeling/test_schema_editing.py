"""A lead changes labels and guideline in the browser; the project file stays the truth and every version is kept."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labeling.database import accounts, settings
from labeling.database.chain import verify_chain
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.schema_editing import SchemaDraft, draft_of, labels_from_form, save_schema, with_schema
from labeling.storage import project_lock
from schemas.errors import BusyError, Forbidden, LabelingError, ProjectError, VersionConflict
from schemas.project import Label
from schemas.review import Role

FILE = """\
# Made by hand.
version: 1
name: inbox
schema:
  task: classification
  instruction: What is it?  # a comment that is lost
  guideline: guideline.md
  labels:
  - {name: Refill, definition: Pills., min_share: 0.1}
  - name: Urgent

# What the data is.
sources: [{path: messages.csv}]  # kept
"""


@pytest.fixture
def folder(tmp_path: Path) -> ProjectFolder:
    (tmp_path / "project.yaml").write_text(FILE, "utf-8")
    (tmp_path / "guideline.md").write_text("# Guideline\n\nRead it.\n", "utf-8")
    return ProjectFolder(tmp_path)


@pytest.fixture
def db(folder: ProjectFolder) -> Iterator[Database]:
    with open_database(folder) as database:
        yield database


def a_person(db: Database, role: Role = Role.MANAGER) -> str:
    token = accounts.invite(db, role, "Lea", accounts.OPERATOR)
    return accounts.accept_invitation(db, token, f"lea-{role.value}", "a few long words").id


def stands(folder: ProjectFolder) -> SchemaDraft:
    return draft_of(*load_project(folder.root))


def test_the_section_is_written_anew_and_every_other_line_stays(folder: ProjectFolder, db: Database) -> None:
    labels = (Label(name="Refill", definition="Wants more of a medicine."), Label(name="Urgent"))
    draft = replace(stands(folder), labels=labels, guideline="# Guideline\r\n\r\nRead all of it.\r\n")

    project, kinds = save_schema(db, folder, draft, by=a_person(db), note="clearer", seen=0)

    text = (folder.root / "project.yaml").read_text("utf-8")
    assert text.startswith("# Made by hand.\nversion: 1\nname: inbox\nschema:\n")
    assert text.endswith("\n\n# What the data is.\nsources: [{path: messages.csv}]  # kept\n")
    assert kinds == ["schema", "guideline"]
    assert load_project(folder.root)[0] == project
    assert project.label_schema.labels[0].definition == "Wants more of a medicine."
    assert project.label_schema.labels[0].min_share == 0.1  # what the page does not show stays
    assert (folder.root / "guideline.md").read_bytes() == b"# Guideline\n\nRead all of it.\n"


def test_what_stood_there_before_is_a_version_too_and_the_trail_is_whole(
    folder: ProjectFolder, db: Database
) -> None:
    lead = a_person(db)
    for turn, question in enumerate(("What does it want?", "What is wanted?")):
        draft = replace(stands(folder), instruction=question)
        save_schema(db, folder, draft, by=lead, note=f"turn {turn}", seen=2 * turn if turn == 0 else 2)

    told = settings.versions(db, settings.SCHEMA)

    assert [(version.version, version.by, version.note) for version in told] == [
        (3, lead, "turn 1"),
        (2, lead, "turn 0"),
        (1, accounts.OPERATOR, "As it stood in the project's files."),
    ]
    assert "What is it?" in told[2].content and "What is wanted?" in told[0].content
    assert settings.versions(db, settings.GUIDELINE) == []
    assert verify_chain(db) == []


def test_nothing_changed_makes_no_version_and_touches_no_file(folder: ProjectFolder, db: Database) -> None:
    _, kinds = save_schema(db, folder, stands(folder), by=a_person(db), note="", seen=0)

    assert kinds == [] and (folder.root / "project.yaml").read_text("utf-8") == FILE


def test_two_leads_at_once_do_not_overwrite_each_other(folder: ProjectFolder, db: Database) -> None:
    lead, before = a_person(db), stands(folder)
    save_schema(db, folder, replace(before, instruction="First"), by=lead, note="", seen=0)

    with pytest.raises(VersionConflict):
        save_schema(db, folder, replace(before, instruction="Second"), by=lead, note="", seen=0)

    assert stands(folder).instruction == "First"


@pytest.mark.parametrize(
    "labels", [(Label(name="Refill"),), (Label(name="Refill"), Label(name="refill"))], ids=["one", "alike"]
)
def test_a_schema_that_is_not_legal_changes_nothing(
    labels: tuple[Label, ...], folder: ProjectFolder, db: Database
) -> None:
    with pytest.raises(LabelingError):
        save_schema(db, folder, replace(stands(folder), labels=labels), by=a_person(db), note="", seen=0)

    assert (folder.root / "project.yaml").read_text("utf-8") == FILE
    assert settings.versions(db, settings.SCHEMA) == []


def test_labels_that_decisions_were_given_with_keep_their_names(
    folder: ProjectFolder, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "decided", lambda _db: 3)
    before, lead = stands(folder), a_person(db)
    other = replace(before, labels=(*before.labels, Label(name="Billing")))

    with pytest.raises(ProjectError) as caught:
        save_schema(db, folder, other, by=lead, note="", seen=0)

    assert "decisions (3)" in caught.value.found
    clearer = replace(before, labels=(before.labels[0], Label(name="Urgent", definition="Now.")))
    assert save_schema(db, folder, clearer, by=lead, note="", seen=0)[1] == ["schema"]


def test_labels_that_the_model_was_tried_with_keep_their_names(folder: ProjectFolder, db: Database) -> None:
    folder.round(1).plan.parent.mkdir(parents=True)
    folder.round(1).plan.write_text("{}")
    before, lead = stands(folder), a_person(db)

    with pytest.raises(
        ProjectError, match="the model was tried with the ones that stand there.*--until setup"
    ):
        save_schema(db, folder, replace(before, labels=before.labels[::-1]), by=lead, note="", seen=0)

    assert stands(folder).labels == before.labels
    assert save_schema(db, folder, replace(before, instruction="Why?"), by=lead, note="", seen=0)[1] == [
        "schema"
    ]


def test_a_flow_at_work_is_waited_for(folder: ProjectFolder, db: Database) -> None:
    with project_lock(folder.lock, "pre-annotation"), pytest.raises(BusyError):
        save_schema(db, folder, stands(folder), by=a_person(db), note="", seen=0)


def test_who_may_not_edit_changes_nothing(folder: ProjectFolder, db: Database) -> None:
    draft = replace(stands(folder), instruction="Mine")

    with pytest.raises(Forbidden):
        save_schema(db, folder, draft, by=a_person(db, Role.REVIEWER), note="", seen=0)

    assert stands(folder).instruction == "What is it?"


def test_a_file_without_a_block_of_its_own_is_refused() -> None:
    with pytest.raises(ProjectError) as caught:
        with_schema(b'{"version": 1, "schema": {}}', {})

    assert "schema:" in caught.value.found


def test_a_row_without_a_name_is_no_label() -> None:
    labels = labels_from_form(
        ["Refill ", "", " "], ["x\r\ny", "", ""], ["pills", "", ""], ["a\r\n\r\nb ", "", ""]
    )

    assert labels == (Label(name="Refill", definition="x\ny", word="pills", examples=("a", "b")),)
