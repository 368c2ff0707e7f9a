"""Opens the database a project names: its own SQLite file, or PostgreSQL by the name of an environment
variable.
"""

import os

from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from schemas.errors import ProjectError
from schemas.project import Project


def database_url(project: Project) -> str | None:
    """The PostgreSQL address of a project; None means SQLite. Secrets live in the environment, not in the
    YAML.
    """
    name = project.storage.database
    if name is None:
        return None
    url = os.environ.get(name)
    if not url:
        raise ProjectError(
            "storage.database",
            found=f"environment variable {name} is not set",
            expected="a PostgreSQL URL in it",
            next_step=f"Set {name}=postgresql+psycopg://USER@HOST/DATABASE, or remove storage.database for SQLite.",
        )
    return url


def project_database(project: Project, folder: ProjectFolder, *, rehearsal: bool = False) -> Database:
    """The open database of a project (a context manager)."""
    return open_database(folder, database_url(project), rehearsal=rehearsal)
