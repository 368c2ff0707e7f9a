"""What the app serves of the project file. The file stays the truth, whoever writes it.

The page for labels, an editor and another app process all write that one file. Each app looks at its stamp with every
request and serves what it says from then on, without a restart.
"""

from dataclasses import replace

from fastapi import FastAPI

from labeling.copilot import Copilot
from labeling.paths import ProjectFolder
from labeling.planned import load_planned
from labeling.task_types import task_type
from schemas.errors import LabelingError
from schemas.project import Project


def serve(app: FastAPI, project: Project) -> None:
    """Serve this project: its labels, what is a legal answer, the co-pilot's prompt."""
    state = app.state
    task = task_type(project)
    state.settings = replace(state.settings, project=project)
    state.task = task
    state.check_value = state.settings.check_value or task.check
    state.copilot = Copilot(project, state.settings.folder)


def serve_what_the_file_says(app: FastAPI) -> None:
    """Serve the project file if it changed; one that cannot be read, half written say, or that
    has other labels than the drafts, leaves all as it was."""
    folder: ProjectFolder = app.state.settings.folder
    stamp = stamp_of(folder)
    if stamp is None or stamp == app.state.stamp:
        return
    app.state.stamp = stamp  # before it is read: what is written meanwhile is read at the next request
    try:
        project, _ = load_planned(folder.root)
    except (LabelingError, OSError):
        return
    serve(app, project)


def stamp_of(folder: ProjectFolder) -> tuple[int, int, int] | None:
    """What tells one writing of the project file from another; None where it is missing."""
    try:
        found = (folder.root / "project.yaml").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
