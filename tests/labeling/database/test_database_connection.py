"""Opening, migrating, and what a person reads when the disk does not play along."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from small_projects import write_project
from sqlalchemy import event, insert, select, text

from labeling.database import accounts, chain, connection, tables
from labeling.database.connection import Database, open_database
from labeling.database.migrations import runner
from labeling.database.opening import own_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from schemas.errors import QueueError, StorageError
from schemas.review import Role

ROOT = Path(__file__).resolve().parents[3]


def test_the_migrations_make_exactly_the_tables_the_code_describes(db: Database) -> None:
    with db.write() as conn:
        differences = compare_metadata(MigrationContext.configure(conn), tables.metadata)
    # An index on an expression (priority DESC) is compared as text, which SQLite and PostgreSQL spell in
    # their own ways.
    assert [d for d in differences if "ix_queue_items_next" not in repr(d)] == []


def test_the_code_knows_the_newest_migration() -> None:
    assert runner.head() == tables.REVISION


def test_a_new_database_starts_its_chain_by_saying_whether_it_is_a_rehearsal(tmp_path: Path) -> None:
    with open_database(ProjectFolder(tmp_path), rehearsal=True) as db:
        assert db.rehearsal
        assert chain.entries(db)[0]["action"] == "database.created"
        assert chain.entries(db)[0]["payload"]["rehearsal"] is True
    with open_database(ProjectFolder(tmp_path)) as db:
        assert db.rehearsal


def test_a_real_database_is_never_opened_as_a_rehearsal(sqlite_db: Database, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Rehearse in a folder of its own"):
        open_database(ProjectFolder(tmp_path), rehearsal=True)


def test_sqlite_runs_with_the_settings_that_lose_nothing(sqlite_db: Database) -> None:
    with sqlite_db.read() as conn:
        found = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "truncate", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_only_its_owner_can_read_the_database_file(tmp_path: Path) -> None:
    open_database(ProjectFolder(tmp_path)).close()
    assert stat.S_IMODE(ProjectFolder(tmp_path).database.stat().st_mode) == 0o600


def test_a_write_transaction_that_fails_leaves_nothing(db: Database) -> None:
    before = chain.head(db)
    with pytest.raises(ZeroDivisionError), db.write() as conn:
        chain.append(conn, actor="a", action="x.y", object="o", payload={})
        raise ZeroDivisionError
    assert chain.head(db) == before


def test_a_database_of_a_newer_version_is_refused_and_left_alone(sqlite_db: Database, tmp_path: Path) -> None:
    with sqlite_db.write() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    sqlite_db.close()
    with pytest.raises(StorageError, match="newer version of Countersign"):
        open_database(ProjectFolder(tmp_path))
    with sqlite3.connect(ProjectFolder(tmp_path).database) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("9999",)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    ProjectFolder(tmp_path).database.write_bytes(b"this is not a database at all, sorry" * 200)
    with pytest.raises(StorageError, match="Restore the last backup"):
        open_database(ProjectFolder(tmp_path))


@pytest.mark.parametrize("work", ["rounds/01/annotations/manifest.jsonl", "releases/v1/manifest.json"])
@pytest.mark.parametrize("left", [None, b""])
def test_a_lost_database_is_not_replaced_by_a_new_one(work: str, left: bytes | None, tmp_path: Path) -> None:
    file = ProjectFolder(tmp_path).database
    (tmp_path / work).parent.mkdir(parents=True)
    (tmp_path / work).write_bytes(b"")
    if left is not None:
        file.write_bytes(left)

    for _ in range(2):
        with pytest.raises(StorageError, match="Restore the database from a backup"):
            open_database(ProjectFolder(tmp_path))

    assert file.exists() is (left is not None)
    assert left is None or file.read_bytes() == left


def test_an_empty_file_that_a_killed_start_left_becomes_the_database(tmp_path: Path) -> None:
    ProjectFolder(tmp_path).database.write_bytes(b"")
    (tmp_path / "rounds" / "01").mkdir(parents=True)

    with open_database(ProjectFolder(tmp_path)) as db:
        assert [entry["action"] for entry in chain.entries(db)] == ["database.created"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        open_database(ProjectFolder(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "address", ["mysql://root@host/x", "no address", "postgresql://me:half@secret:word@host/x"]
)
def test_an_address_that_is_no_postgresql_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(StorageError, match=r"storage\.database") as refused:
        open_database(ProjectFolder(tmp_path), address)
    assert "secret" not in str(refused.value)


def test_an_unreachable_postgresql_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as refused:
        open_database(ProjectFolder(tmp_path), "postgresql://me:secret@127.0.0.1:9/x")
    assert "127.0.0.1:9" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_postgresql_database_belongs_to_one_project(postgresql_url: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_project(tmp_path / name, [{"text": "a"}])
    one, home = load_project(tmp_path / "one")
    other = one.model_copy(update={"name": "other"})
    own_database(one, home, postgresql_url).close()
    own_database(one, home, postgresql_url).close()

    with pytest.raises(StorageError, match="the database of project 'small'"):
        own_database(other, ProjectFolder(tmp_path / "other"), postgresql_url)

    own_database(one, home, None).close()
    own_database(other, home, None).close()


def test_what_no_column_holds_is_refused_and_no_failure_of_the_database(db: Database) -> None:
    with pytest.raises(QueueError):
        accounts.login(db, "ana\x00", "a few long words")
    with pytest.raises(QueueError):
        accounts.revoke_invitation(db, 2**40, accounts.OPERATOR)
    with pytest.raises(QueueError):
        accounts.deactivate(db, "a\x00", accounts.OPERATOR)


def test_a_full_disk_is_said_plainly_saves_nothing_and_recovers_without_repair(
    sqlite_db: Database, tmp_path: Path
) -> None:
    def fill(raw: sqlite3.Connection, *_: object) -> None:
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        raw.execute(f"PRAGMA max_page_count={pages + 2}")

    sqlite_db.close()
    event.listen(sqlite_db.engine, "connect", fill)
    before = chain.head(sqlite_db)
    with pytest.raises(StorageError, match="the disk is full"), sqlite_db.write() as conn:
        chain.append(conn, actor="a", action="x.y", object="o", payload={"text": "x" * 100_000})
    assert chain.head(sqlite_db) == before
    sqlite_db.close()
    with open_database(ProjectFolder(tmp_path)) as again, again.write() as conn:
        chain.append(conn, actor="a", action="x.y", object="o", payload={"text": "x" * 100_000})
    assert chain.verify_chain(sqlite_db) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody without write access")
def test_a_read_only_folder_is_said_plainly(sqlite_db: Database, tmp_path: Path) -> None:
    sqlite_db.close()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    ProjectFolder(tmp_path).database.chmod(0o444)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            with open_database(ProjectFolder(tmp_path)) as db, db.write() as conn:
                chain.append(conn, actor="a", action="x.y", object="o", payload={})
        except StorageError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as said:
        assert "Give this user write access" in said.read()


def test_a_lock_held_by_another_program_is_said_plainly_after_the_wait(
    sqlite_db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.3)
    holder = sqlite3.connect(ProjectFolder(tmp_path).database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with open_closed(tmp_path) as db, pytest.raises(StorageError, match="locked"), db.write():
        pass
    holder.execute("ROLLBACK")
    with open_database(ProjectFolder(tmp_path)) as db, db.write() as conn:
        chain.append(conn, actor="a", action="x.y", object="o", payload={})


def open_closed(folder: Path) -> Database:
    """A database whose opening look is already over, so that only the write meets the lock."""
    return Database(connection._sqlite(ProjectFolder(folder)), shown_as="countersign.db")


def test_threads_of_one_process_write_one_after_another_without_an_error(db: Database) -> None:
    def write() -> None:
        for _ in range(10):
            with db.write() as conn:
                chain.append(conn, actor="a", action="x.y", object="o", payload={})

    before, _ = chain.head(db)
    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chain.head(db)[0] == before + 80
    assert chain.verify_chain(db) == []


@pytest.mark.parametrize("table", tables.APPEND_ONLY)
def test_history_cannot_be_updated_or_deleted_by_our_own_code(db: Database, table: str) -> None:
    _one_row_each(db)
    with pytest.raises(StorageError, match="append-only"), db.write() as conn:
        conn.execute(
            text(f"UPDATE {table} SET audit_seq = 1" if table != "audit" else "UPDATE audit SET actor = 'x'")
        )
    with pytest.raises(StorageError, match="append-only"), db.write() as conn:
        conn.execute(text(f"DELETE FROM {table}"))


def _one_row_each(db: Database) -> None:
    from labeling.database import queue, rounds
    from schemas.review import DecisionIn, Purpose, QueueItem, RoundState, Seen

    token = accounts.invite(db, Role.MANAGER, "Lea", accounts.OPERATOR)
    lea = accounts.accept_invitation(db, token, "Lea", "a long password")
    rounds.open_round(db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")
    item = QueueItem(record_id="r1", purpose=Purpose.SAMPLE, seen=Seen.BLIND, priority=1)
    rounds.add_items(db, 1, [item], {"r1": ("text", None)}, "flow")
    held = queue.claim(db, lea.id)
    assert held is not None
    queue.comment(db, lea.id, held.assignment_id, "Hm.")
    queue.flag(db, lea.id, held.assignment_id, raised=True)
    sent = DecisionIn(
        assignment_id=held.assignment_id,
        idempotency_key="12345678",
        expected_version=held.version,
        action="correct",
        value="x",
        seconds=1,
    )
    queue.decide(db, lea.id, sent, check_value=lambda value, text: None)
    rounds.open_gate(db, "review", 1, {})
    with db.write() as conn:
        chain.record_row(
            conn,
            tables.settings_versions,
            {
                "kind": "schema",
                "version": 1,
                "content": "{}",
                "content_sha256": "0" * 64,
                "account_id": lea.id,
                "note": "",
                "at": db.now(),
            },
            actor=lea.id,
            object="settings:schema",
            utc=db.now(),
        )
    assert chain.verify_chain(db) == []


def test_two_processes_that_open_a_new_database_at_once_migrate_it_once(
    tmp_path: Path, postgresql_url: str
) -> None:
    for url in (None, postgresql_url):
        script = (
            "from pathlib import Path; from labeling.paths import ProjectFolder;"
            "from labeling.database.connection import open_database\n"
            f"open_database(ProjectFolder(Path({str(tmp_path)!r})), {url!r}).close()"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
            for _ in range(2)
        ]
        assert [process.wait() for process in processes] == [0, 0]
        with open_database(ProjectFolder(tmp_path), url) as db:
            assert [entry["action"] for entry in chain.entries(db)] == ["database.created"]


def test_a_kill_in_the_middle_of_a_migration_leaves_the_old_database_or_the_new_one(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from labeling.paths import ProjectFolder;"
        "from labeling.database import connection; from labeling.database.migrations import runner\n"
        "connection._stamp = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"connection.open_database(ProjectFolder(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    with sqlite3.connect(ProjectFolder(tmp_path).database) as raw:
        assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    with open_database(ProjectFolder(tmp_path)) as db:
        assert chain.verify_chain(db) == []


def test_opening_an_up_to_date_database_does_not_import_alembic(tmp_path: Path) -> None:
    open_database(ProjectFolder(tmp_path)).close()
    script = (
        "import sys; from pathlib import Path; from labeling.paths import ProjectFolder;"
        "from labeling.database.connection import open_database\n"
        f"open_database(ProjectFolder(Path({str(tmp_path)!r}))).close()\n"
        "sys.exit('alembic' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
        == 0
    )


def test_a_reader_does_not_keep_a_writer_out_for_longer_than_it_reads(sqlite_db: Database) -> None:
    reading = threading.Event()

    def read() -> None:
        with sqlite_db.read() as conn:
            conn.execute(select(tables.audit)).all()
            reading.set()
            time.sleep(0.2)

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait()
    with sqlite_db.write() as conn:
        conn.execute(insert(tables.meta).values(key="x", value="y"))
    thread.join()


def _first_version(path: Path) -> None:
    """A database as 0001 left it, with a decision in it."""
    script = (
        "import sys; from pathlib import Path; from alembic import command;"
        "from labeling.database import connection, tables; from labeling.database.migrations import runner;"
        "from labeling.paths import ProjectFolder\n"
        "def first(connected, *, shown_as):\n"
        "    made = runner.config(); made.attributes['connection'] = connected\n"
        "    command.upgrade(made, '0001')\n"
        "runner.upgrade = first; tables.REVISION = '0001'\n"
        f"connection.open_database(ProjectFolder(Path({str(path)!r}))).close()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    with sqlite3.connect(ProjectFolder(path).database) as raw:
        raw.execute("INSERT INTO rounds VALUES (1, 'open', 0, '2026-01-01T00:00:00.000000Z')")
        told = '{"confidence":0.8,"value":["Refill","Billing"]}'
        for number, suggestion in ((1, told), (2, None)):
            raw.execute(
                "INSERT INTO queue_items VALUES (?, 1, 'review', ?, 'selected', 'assisted', 1, 1, 'text', ?, ?, '', "
                "0, 0, 0)",
                (number, f"r{number}", "0" * 64, suggestion),
            )


def test_a_database_of_the_first_version_is_brought_up_to_date_and_found_by_its_suggestions(
    tmp_path: Path,
) -> None:
    _first_version(tmp_path)
    with open_database(ProjectFolder(tmp_path)) as db, db.read() as conn:
        item = tables.queue_items.c
        found = conn.execute(select(item.confidence, item.suggested_labels).order_by(item.id)).all()
        assert found == [(0.8, tables.joined_labels(["Refill", "Billing"])), (None, None)]
    with open_database(ProjectFolder(tmp_path)) as db:
        _one_row_each_of_an_old_database(db)
        assert chain.verify_chain(db) == []


def _one_row_each_of_an_old_database(db: Database) -> None:
    from labeling.database import queue
    from schemas.review import DecisionIn

    token = accounts.invite(db, Role.ANNOTATOR, "Ana", accounts.OPERATOR)
    ana = accounts.accept_invitation(db, token, "Ana", "a long password")
    held = queue.claim(db, ana.id)
    assert held is not None
    sent = DecisionIn(
        assignment_id=held.assignment_id,
        idempotency_key="12345678",
        expected_version=held.version,
        action="accept",
        value=["Refill", "Billing"],
        seconds=1,
    )
    queue.decide(db, ana.id, sent, check_value=lambda value, text: None)


def test_a_kill_while_a_database_is_brought_up_to_date_leaves_the_old_one(tmp_path: Path) -> None:
    _first_version(tmp_path)
    script = (
        "import os, signal; from pathlib import Path; from labeling.paths import ProjectFolder;"
        "from labeling.database import connection; from alembic.operations import Operations\n"
        "Operations.create_index = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"connection.open_database(ProjectFolder(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    with sqlite3.connect(ProjectFolder(tmp_path).database) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        assert (
            "pool_id"
            not in raw.execute("SELECT sql FROM sqlite_master WHERE name = 'queue_items'").fetchone()[0]
        )
    with open_database(ProjectFolder(tmp_path)) as db:
        assert chain.verify_chain(db) == []
