"""A project whose rounds are planned: its labels are those that the drafts are made with.

Scores are kept in the order of the labels. Moved by hand in project.yaml, one label would get the scores of another.
"""

from pathlib import Path

from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.storage import Table, read_json
from schemas import tables
from schemas.errors import ProjectError
from schemas.project import Project


def has_drafts(project: Project, folder: ProjectFolder, number: int) -> bool:
    """Whether drafts of a round were made with its plan, which stands from then on."""
    return Table(folder.round(number).suggestions, tables.suggestions(project.label_schema.task)).exists


def load_planned(path: Path | str) -> tuple[Project, ProjectFolder]:
    """Reads a project for work on its drafts, whose scores are stored in the order of the labels.

    Raises:
        ProjectError: labels were added, removed, renamed or moved by hand since.
        As `load_project`.
    """
    project, folder = load_project(path)
    if folder.round(1).plan.is_file():
        used = read_json(folder.prompts_used / f"{read_json(folder.round(1).plan)['prompt_id']}.json")
        labels = [code[0] for code in used["codes"]]
        if labels != list(project.label_schema.names):
            raise ProjectError(
                "schema.labels",
                found=", ".join(project.label_schema.names)[:500],
                expected=f"the labels that the drafts are made with, in their order: {', '.join(labels)[:500]}",
                next_step="Put them back; definitions may change at any time. For other labels start a new project."
                if has_drafts(project, folder, 1)
                else "Put them back, or let the sample be measured with the new ones: `countersign run PROJECT --until "
                "setup`.",
            )
    return project, folder
