"""Opens the database a project names: its own SQLite file, or PostgreSQL by the name of an environment
variable.
"""

import os

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from labeling.database import tables
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from schemas.errors import ProjectError, StorageError
from schemas.project import Project

_OWNER = "project"


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
    return own_database(project, folder, database_url(project), rehearsal=rehearsal)


def own_database(
    project: Project, folder: ProjectFolder, url: str | None, *, rehearsal: bool = False
) -> Database:
    """The open database at an address (a context manager).

    Raises:
        StorageError: It is another project's: rounds have no other name than their number, and would run together.
        As `open_database`.
    """
    db = open_database(folder, url, rehearsal=rehearsal)
    if url is None:  # in the project's own folder
        return db
    try:
        owner = _owner(db) or _take(db, project)
        if owner != project.name:
            raise StorageError(
                db.shown_as,
                found=f"the database of project {owner!r}",
                expected=f"one that belongs to {project.name!r} alone",
                next_step="Give every project a database of its own (`storage.database` names the variable that holds "
                "its address). If this project was renamed, put the old `name` back; `title` is what people read.",
            )
    except BaseException:
        db.close()
        raise
    return db


def _owner(db: Database) -> str | None:
    with db.read() as conn:
        return conn.execute(select(tables.meta.c.value).where(tables.meta.c.key == _OWNER)).scalar()


def _take(db: Database, project: Project) -> str | None:
    """Names the project in a database that names none yet; returns whose it is then."""
    try:
        with db.write() as conn:
            conn.execute(tables.meta.insert().values(key=_OWNER, value=project.name))
    except IntegrityError:  # another process was faster
        pass
    return _owner(db)
