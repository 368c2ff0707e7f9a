"""A fresh review database a test, on SQLite and on a private PostgreSQL that is started for the session."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from argon2 import PasswordHasher
from clinic import Clinic, Clock
from postgresql_cluster import private_postgresql

from labeling.database import accounts, tables
from labeling.database.connection import Database, _postgresql, _stamp, open_database
from labeling.paths import ProjectFolder


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    """Argon2 as it ships takes 50 ms a password; `test_accounts` looks at the real settings."""
    kept = accounts._hasher, accounts._NOBODYS_HASH
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    accounts._NOBODYS_HASH = accounts._hasher.hash("nobody")
    yield
    accounts._hasher, accounts._NOBODYS_HASH = kept


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Address of a private PostgreSQL cluster (without a database name)."""
    with private_postgresql() as folder:
        yield f"postgresql://countersign@/{{name}}?host={folder}"


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrating takes longer than most tests; they start from a copy."""
    folder = tmp_path_factory.mktemp("template")
    open_database(ProjectFolder(folder)).close()
    return ProjectFolder(folder).database


@pytest.fixture(scope="session")
def _postgresql_migrated(postgresql_server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    with psycopg.connect(postgresql_server.format(name="postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE countersign")
    url = postgresql_server.format(name="countersign")
    open_database(ProjectFolder(tmp_path_factory.mktemp("unused")), url).close()
    return url


def _emptied(url: str) -> None:
    """Emptying takes 10 ms, a database of its own 150 ms and 8 MB."""
    with psycopg.connect(url) as admin:
        admin.execute("SET session_replication_role = replica")
        for table in tables.metadata.tables:
            admin.execute(f'DELETE FROM "{table}"')
        admin.execute("INSERT INTO audit_head VALUES (1, 0, %s)", ["0" * 64])
    with Database(_postgresql(url), shown_as="countersign") as database, database.write() as conn:
        _stamp(conn, rehearsal=False, now=database.now())


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """An empty database of its own."""
    name = f"t{uuid4().hex[:12]}"
    with psycopg.connect(postgresql_server.format(name="postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return postgresql_server.format(name=name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where the database of the test is, already migrated: None is SQLite in `tmp_path`."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("_sqlite_template"), ProjectFolder(tmp_path).database)
        return None
    address: str = request.getfixturevalue("_postgresql_migrated")
    _emptied(address)
    return address


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(url: str | None, tmp_path: Path, clock: Clock) -> Iterator[Database]:
    with open_database(ProjectFolder(tmp_path), url, clock=clock) as database:
        yield database


@pytest.fixture
def sqlite_db(_sqlite_template: Path, tmp_path: Path, clock: Clock) -> Iterator[Database]:
    shutil.copy(_sqlite_template, ProjectFolder(tmp_path).database)
    with open_database(ProjectFolder(tmp_path), clock=clock) as database:
        yield database


@pytest.fixture
def clinic(db: Database) -> Clinic:
    return Clinic(db)


@pytest.fixture
def sqlite_clinic(sqlite_db: Database) -> Clinic:
    return Clinic(sqlite_db)


@pytest.fixture
def another_window(url: str | None, tmp_path: Path, clock: Clock) -> Iterator[Callable[[], Database]]:
    """Opens the same database again, as a second process would."""
    opened: list[Database] = []

    def again() -> Database:
        opened.append(open_database(ProjectFolder(tmp_path), url, clock=clock))
        return opened[-1]

    yield again
    for database in opened:
        database.close()
