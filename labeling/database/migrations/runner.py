"""Running the migrations that ship inside the package, on a connection that the caller commits."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from schemas.errors import StorageError

FOLDER = Path(__file__).resolve().parent


def config() -> Config:
    """Alembic's configuration; there is no alembic.ini, a database is only ever migrated by opening it."""
    made = Config()
    made.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return made


def head() -> str | None:
    """The newest revision that ships."""
    return ScriptDirectory.from_config(config()).get_current_head()


def upgrade(connection: Connection, *, shown_as: str) -> None:
    """Bring the database to the newest revision inside the caller's transaction.

    Raises:
        StorageError: The database was written by a newer version.
    """
    made = config()
    made.attributes["connection"] = connection
    try:
        command.upgrade(made, "head")
    except CommandError as error:
        raise StorageError(
            shown_as,
            found=f"a database this version does not know ({error})",
            expected=f"revision {head()} or older",
            next_step="Install the newer version of Countersign that wrote it; nothing was changed.",
        ) from error
