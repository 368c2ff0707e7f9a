"""Opening the review database and its two kinds of transaction.

SQLite runs with a rollback journal (`TRUNCATE`), not WAL: the standard library's SQLite 3.40.1 has the
WAL-reset race, and flows and the review app write to the same file from several processes. See
docs/decisions/review-database.md.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import QueuePool

from labeling.database import tables
from labeling.database.turns import GroupCommit, Line, ReadGate
from labeling.paths import ProjectFolder
from schemas.errors import LabelingError, QueueError, StorageError

BUSY_TIMEOUT_S = 5.0
TURN_TIMEOUT_S = 30.0  # threads of our own process: the queue moves, so waiting longer loses nothing
# Transactions that PostgreSQL gets at a time from those of one process who decide and claim. All of them end at the
# head of the audit chain: more would only wait there, in no order, each with a server process of its own.
WRITERS = 2
_MIGRATION_LOCK = 0x636F756E  # any number of our own: PostgreSQL's advisory lock while migrations run

Result = TypeVar("Result")


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Database:
    """The review database of one project, open.

    Attributes:
        rehearsal: Stamped when the database was made and never changed: all its decisions are simulated.
    """

    def __init__(self, engine: Engine, *, shown_as: str, clock: Callable[[], datetime] = _utc_now) -> None:
        self.engine = engine
        self.shown_as = shown_as
        self._clock = clock
        self._sqlite = engine.dialect.name == "sqlite"
        self._line = Line(1 if self._sqlite else WRITERS, TURN_TIMEOUT_S, self._crowded)
        self._gate = ReadGate(BUSY_TIMEOUT_S)
        self._group = GroupCommit(self._own_turn, self._interrupted)

    def now(self) -> datetime:
        """UTC time; order is never taken from it, only from the audit sequence."""
        return self._clock()

    @property
    def rehearsal(self) -> bool:
        with self.read() as connection:
            return is_rehearsal(connection)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that holds the write lock from its start. Leaving the block without an error
        commits.
        """
        with self._translated(), self._own_turn() as connection:
            yield connection

    def together(self, work: Callable[[Connection], Result]) -> Result:
        """As `write`, for short work that many do at once: first come, first served.

        On SQLite it may share the transaction of others.

        Returns what `work` returns, once that is durable; raises what it raises, and then nothing of it is
        stored.
        """
        if not self._sqlite:
            with self._line.turn(), self.write() as connection:
                return work(connection)
        with self._translated():
            return self._group.run(work)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only snapshot; on SQLite keep it short, it holds back the commit of a writer."""
        with (
            self._translated(),
            self._gate.reading() if self._sqlite else nullcontext(),
            self.engine.connect() as raw,
        ):
            # PostgreSQL looks anew at every statement otherwise: what a reader holds against each other would not fit.
            level = {} if self._sqlite else {"isolation_level": "REPEATABLE READ"}
            connection = raw.execution_options(countersign_read=True, **level)
            with connection.begin():
                yield connection

    @contextmanager
    def _own_turn(self) -> Iterator[Connection]:
        with (
            self._line.turn() if self._sqlite else nullcontext(),
            self.engine.connect() as connection,
            connection.begin() as transaction,
        ):
            yield connection
            with self._gate.alone() if self._sqlite else nullcontext():
                try:
                    transaction.commit()
                except BaseException:
                    # Without this SQLAlchemy takes the connection for reset, and lends it again with the
                    # transaction still open and the file locked.
                    transaction.rollback()
                    raise

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            # A broken constraint is for the caller to read, unless it is our own trigger that guards history.
            if isinstance(error, IntegrityError) and "append-only" not in str(error.orig):
                raise
            raise self._said_plainly(error) from error

    def _crowded(self) -> StorageError:
        slow, step = (
            ("disk", "use PostgreSQL for many people on a slow disk.")
            if self._sqlite
            else ("server", "if it stays so, look at what holds PostgreSQL up.")
        )
        return StorageError(
            self.shown_as,
            found=f"more writing at once than the {slow} keeps up with for {TURN_TIMEOUT_S:.0f} s",
            expected="a turn to write",
            next_step=f"Nothing was saved. Try again; {step}",
        )

    def _interrupted(self) -> StorageError:
        return StorageError(
            self.shown_as,
            found="writing was broken off",
            expected="a commit",
            next_step="Nothing was saved. Try again.",
        )

    def _locked(self) -> StorageError:
        return StorageError(
            self.shown_as,
            found=f"another program kept the database locked for {BUSY_TIMEOUT_S:.0f} s",
            expected="a turn to write",
            next_step="Nothing was saved. Try again; if it stays locked, end the program that holds it.",
        )

    def _said_plainly(self, error: DBAPIError) -> LabelingError:
        said = str(error.orig)
        low = said.lower()
        if isinstance(error, DataError):
            return _not_for_columns(said)
        if self._sqlite and ("locked" in low or "busy" in low):
            return self._locked()
        if "disk is full" in low or "no space left" in low:
            found, step = (
                "the disk is full",
                "Nothing was saved. Free some space and try again; no repair is needed.",
            )
        elif "readonly" in low or "read-only" in low:
            found, step = (
                "the database is read-only",
                "Nothing was saved. Give this user write access to the folder.",
            )
        elif "append-only" in low:
            found, step = (
                said.splitlines()[0],
                "History is never rewritten; add a row that supersedes the old one.",
            )
        elif "malformed" in low or "not a database" in low:
            found, step = f"a damaged file ({said})", "Restore the last backup; do not go on with this file."
        elif "unable to open" in low:
            found, step = (
                "a file that cannot be opened",
                "Check that the folder exists and may be written by this user.",
            )
        elif isinstance(error, OperationalError) and self.engine.dialect.name == "postgresql":
            found, step = (
                f"no answer from PostgreSQL ({said.splitlines()[0] if said else 'closed'})",
                ("Nothing was saved. Check that the server runs and its address is right, then try again."),
            )
        else:
            found, step = (
                said.splitlines()[0] if said else "an error",
                "Nothing was saved. Report this message.",
            )
        return StorageError(
            self.shown_as, found=found, expected="a database that can be read and written", next_step=step
        )


def open_database(
    project_folder: ProjectFolder,
    url: str | None = None,
    *,
    rehearsal: bool = False,
    clock: Callable[[], datetime] = _utc_now,
) -> Database:
    """Open the review database of a project, making it or bringing it up to date first.

    Args:
        project_folder: The project; SQLite lives in its `countersign.db`.
        url: A PostgreSQL address of a database that belongs to this project alone; None means SQLite.
        rehearsal: Stamp a NEW database as holding a rehearsal. An existing real one is refused, an existing
            rehearsal stays one whatever is asked.
        clock: Where UTC time comes from.

    Raises:
        StorageError: It cannot be opened, is from a newer version, is a real one where a rehearsal was asked
            for, or is gone although the folder holds people's work.
    """
    if url is None:
        database = Database(_sqlite(project_folder), shown_as=str(project_folder.database), clock=clock)
    else:
        database = Database(
            _postgresql(url), shown_as=make_url(url).render_as_string(hide_password=True), clock=clock
        )
    try:
        _bring_up_to_date(database, project_folder, rehearsal=rehearsal)
    except BaseException:
        database.close()
        raise
    return database


def require_answer(url: str) -> None:
    """Raises StorageError unless PostgreSQL answers at an address; makes and changes nothing there."""
    with (
        Database(_postgresql(url), shown_as=make_url(url).render_as_string(hide_password=True)) as db,
        db.read() as conn,
    ):
        conn.execute(select(1))


def _not_for_columns(said: str) -> QueueError:
    """PostgreSQL holds no NUL in a text and no number beyond its column; SQLite takes them and finds nothing."""
    return QueueError(
        "request",
        found=f"what no column can hold ({said.splitlines()[0] if said else 'no reason told'})",
        expected="plain text and numbers of an ordinary size",
        next_step="Nothing was saved. Correct it and send it again.",
    )


def is_rehearsal(connection: Connection) -> bool:
    """Whether everything in this database is simulated."""
    stamp = connection.execute(
        select(tables.meta.c.value).where(tables.meta.c.key == "rehearsal")
    ).scalar_one()
    return bool(stamp == "true")


def _sqlite(project_folder: ProjectFolder) -> Engine:
    path = project_folder.database
    if not path.parent.is_dir():
        raise StorageError(
            str(path.parent),
            found="no such folder",
            expected="a project folder",
            next_step="Run `countersign init`.",
        )
    if not path.exists():
        _require_no_work(project_folder, str(path), "no such file")
        try:
            # Texts of patients and password hashes: nobody but this user reads the file.
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            raise StorageError(
                str(path),
                found=error.strerror or "an error",
                expected="a folder that can be written",
                next_step="Give this user write access to the project folder, or free some space.",
            ) from error
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=8,
        max_overflow=40,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own BEGIN comes too late and is deferred; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    connection.create_function("casefold", 1, str.casefold, deterministic=True)
    for pragma in ("journal_mode=TRUNCATE", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("countersign_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _postgresql(url: str) -> Engine:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: what stands where the port should is no number
        raise StorageError(
            "storage.database",
            found="an address that cannot be read",
            expected="postgresql://user:password@host:port/name",
            next_step="Correct the environment variable that the project names; in a password, write : / @ # and % as "
            "%3A, %2F, %40, %23 and %25.",
        ) from error
    if address.get_backend_name() not in ("postgresql", "postgres"):
        raise StorageError(
            "storage.database",
            found=address.get_backend_name(),
            expected="postgresql://…",
            next_step="Leave storage.database out for SQLite, or give a PostgreSQL address.",
        )
    return create_engine(
        address.set(drivername="postgresql+psycopg"), pool_size=8, max_overflow=40, pool_pre_ping=True
    )


def _require_no_work(project_folder: ProjectFolder, shown_as: str, found: str) -> None:
    """A new database in place of a lost one would number rounds and decisions anew beside what the old one told."""
    work = next(project_folder.rounds.glob("*/annotations/*"), None)
    work = work or next(project_folder.releases.glob("v*"), None)
    if work is not None:
        raise StorageError(
            shown_as,
            found=f"{found}, though the folder holds {work.relative_to(project_folder.root)}",
            expected="the database with the decisions it was made of",
            next_step="Restore the database from a backup of the same time as the folder; nothing was changed.",
        )


def _bring_up_to_date(database: Database, project_folder: ProjectFolder, *, rehearsal: bool) -> None:
    found = _revision(database)
    if found is None:
        _require_no_work(project_folder, database.shown_as, "an empty database")
    if found != tables.REVISION:
        _migrate(database, rehearsal=rehearsal)
    elif rehearsal and not database.rehearsal:
        raise StorageError(
            database.shown_as,
            found="a database with real work in it",
            expected="a rehearsal",
            next_step="Rehearse in a folder of its own; simulated decisions never mix with real ones.",
        )


def _revision(database: Database) -> str | None:
    with database.read() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(database: Database, *, rehearsal: bool) -> None:
    # Alembic takes 0.3 s to import; a database that is up to date never needs it.
    from labeling.database.migrations import runner

    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        # One transaction for all of it: a kill in the middle leaves the old database or the new one.
        runner.upgrade(connection, shown_as=database.shown_as)
        if connection.execute(select(tables.meta.c.value)).first() is None:
            _stamp(connection, rehearsal=rehearsal, now=database.now())


def _stamp(connection: Connection, *, rehearsal: bool, now: datetime) -> None:
    from labeling.database import chain

    connection.execute(tables.meta.insert().values(key="rehearsal", value="true" if rehearsal else "false"))
    chain.append(
        connection,
        actor="system",
        action="database.created",
        object="database",
        payload={"rehearsal": rehearsal, "revision": tables.REVISION},
        utc=now,
    )
