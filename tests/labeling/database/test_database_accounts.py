"""Nobody gets in who was not invited, and nobody does what their role does not say."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic, Clock
from sqlalchemy import select

from labeling.database import accounts, chain, queue, tables
from labeling.database.accounts import OPERATOR, Right
from labeling.database.connection import Database, open_database
from labeling.paths import ProjectFolder
from schemas.errors import Forbidden, QueueError
from schemas.review import Role

PASSWORD = "correct horse battery"


@pytest.fixture
def db(sqlite_db: Database) -> Database:
    """Accounts use no feature in which the databases differ, but one: see the first test."""
    return sqlite_db


def test_accounts_work_on_postgresql_and_names_tried_at_once_are_all_counted(
    postgresql_server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = request.getfixturevalue("postgresql_url")
    with open_database(ProjectFolder(tmp_path), url) as db:
        ana = member(db)
        assert accounts.login(db, "Ana", PASSWORD)[0] == ana

        def fail(_: int) -> str:
            with pytest.raises(Forbidden) as refused:
                accounts.login(db, "nobody", "wrong password")
            return str(refused.value)

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(fail, range(8)))
        assert sum("Wait 15 minutes" in one for one in said) == 3


def member(db: Database, name: str = "Ana", role: Role = Role.ANNOTATOR) -> accounts.Account:
    token = accounts.invite(db, role, name, OPERATOR)
    return accounts.accept_invitation(db, token, name, PASSWORD)


def test_a_new_database_has_nobody_in_it(db: Database) -> None:
    assert accounts.people(db) == []
    for name in ("admin", "root", "local", "operator", ""):
        with pytest.raises(Forbidden):
            accounts.login(db, name, name or "admin")


def test_an_invitation_makes_one_account_and_is_then_used_up(db: Database) -> None:
    token = accounts.invite(db, Role.REVIEWER, "Ana Lima", OPERATOR)
    offered = accounts.invitation_for(db, token)
    assert offered is not None and offered.role is Role.REVIEWER
    ana = accounts.accept_invitation(db, token, "ana", PASSWORD)
    assert (ana.role, ana.display_name) == (Role.REVIEWER, "Ana Lima")
    assert accounts.invitation_for(db, token) is None
    with pytest.raises(Forbidden, match="Ask the person who invited you"):
        accounts.accept_invitation(db, token, "eve", PASSWORD)
    assert [invitation.state for invitation in accounts.invitations(db)] == ["used"]


def test_an_invitation_dies_after_a_week(db: Database, clock: Clock) -> None:
    token = accounts.invite(db, Role.ANNOTATOR, "Ana", OPERATOR)
    clock.forward(days=7, seconds=1)
    assert [invitation.state for invitation in accounts.invitations(db)] == ["expired"]
    with pytest.raises(Forbidden):
        accounts.accept_invitation(db, token, "ana", PASSWORD)


def test_whoever_starts_the_program_lets_the_first_admin_in_and_nobody_after(db: Database) -> None:
    lost, token = accounts.setup_invitation(db), accounts.setup_invitation(db)
    assert lost is not None and token is not None
    with pytest.raises(Forbidden):
        accounts.accept_invitation(db, lost, "mallory", PASSWORD)

    admin = accounts.accept_invitation(db, token, "ada", PASSWORD)

    assert admin.role is Role.ADMIN
    assert accounts.setup_invitation(db) is None
    accounts.invite(db, Role.MANAGER, "Lea", admin.id)


@pytest.mark.parametrize(
    ("role", "asked"), [(Role.ANNOTATOR, True), (Role.AUDITOR, True), (Role.MANAGER, False)]
)
def test_only_who_may_invite_makes_the_first_admin_needless(role: Role, asked: bool, db: Database) -> None:
    accounts.open_local_session(db)  # a manager, but without a password
    kept = accounts.invite(db, Role.ADMIN, "Ada", OPERATOR)
    person = accounts.accept_invitation(db, accounts.invite(db, role, "Pia", OPERATOR), "pia", PASSWORD)

    assert (accounts.setup_invitation(db) is not None) is asked
    assert accounts.invitation_for(db, kept) is not None  # somebody's own invitation is left alone
    accounts.deactivate(db, person.id, OPERATOR)
    assert accounts.setup_invitation(db) is not None


@pytest.mark.parametrize("number", [-1, 0, 9999, 2**31, 10**22])
def test_an_invitation_that_is_not_there_cannot_be_revoked(number: int, db: Database) -> None:
    with pytest.raises(QueueError, match="none that is still open"):
        accounts.revoke_invitation(db, number, OPERATOR)


def test_a_revoked_invitation_is_worthless(db: Database) -> None:
    token = accounts.invite(db, Role.ANNOTATOR, "Ana", OPERATOR)
    accounts.revoke_invitation(db, accounts.invitations(db)[0].id, OPERATOR)
    with pytest.raises(Forbidden):
        accounts.accept_invitation(db, token, "ana", PASSWORD)


def test_neither_token_nor_password_is_stored(sqlite_db: Database) -> None:
    token = accounts.invite(sqlite_db, Role.ANNOTATOR, "Ana", OPERATOR)
    accounts.accept_invitation(sqlite_db, token, "ana", PASSWORD)
    _, session = accounts.login(sqlite_db, "ana", PASSWORD)
    content = Path(sqlite_db.shown_as).read_bytes()
    for secret in (token, session, PASSWORD):
        assert secret.encode() not in content


def test_passwords_are_argon2id_with_the_library_s_own_cost() -> None:
    from argon2 import PasswordHasher

    made = PasswordHasher().hash("x")
    assert made.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert "_hasher = PasswordHasher()" in Path(accounts.__file__).read_text()


@pytest.mark.parametrize("password", ["short", "", "x" * 1025])
def test_a_password_that_is_too_short_or_absurdly_long_is_refused(db: Database, password: str) -> None:
    token = accounts.invite(db, Role.ANNOTATOR, "Ana", OPERATOR)
    with pytest.raises(QueueError, match="password"):
        accounts.accept_invitation(db, token, "ana", password)
    assert accounts.invitation_for(db, token) is not None


@pytest.mark.parametrize("name", ["", "a", "x" * 41, "a/b", "../etc", "<b>", "local", "Operator", "a\x00b"])
def test_a_name_that_cannot_be_used_is_refused(db: Database, name: str) -> None:
    token = accounts.invite(db, Role.ANNOTATOR, "Ana", OPERATOR)
    with pytest.raises(QueueError, match="name"):
        accounts.accept_invitation(db, token, name, PASSWORD)


def test_names_that_differ_only_in_case_or_width_are_one_name(db: Database) -> None:
    member(db, "Ana")
    for other in ("ana", "ANA", "Ａna"):
        token = accounts.invite(db, Role.ANNOTATOR, "Ana", OPERATOR)
        with pytest.raises(QueueError, match="taken"):
            accounts.accept_invitation(db, token, other, PASSWORD)
    assert accounts.login(db, "aNA", PASSWORD)[0].name == "Ana"


def test_an_account_is_known_by_a_pseudonym_that_says_nothing_about_the_name(db: Database) -> None:
    ana = member(db, "Ana")
    assert ana.id.startswith("a-") and len(ana.id) == 8
    assert "ana" not in ana.id.lower().removeprefix("a-")


def test_unknown_name_wrong_password_and_closed_account_are_answered_alike(db: Database) -> None:
    ana, bob = member(db, "Ana"), member(db, "Bob")
    accounts.deactivate(db, bob.id, OPERATOR)
    said = set()
    for name, password in ((ana.name, "wrong password"), ("nobody", PASSWORD), (bob.name, PASSWORD)):
        with pytest.raises(Forbidden) as refused:
            accounts.login(db, name, password)
        said.add(str(refused.value))
    assert len(said) == 1


def test_an_unknown_name_costs_as_many_hashes_as_a_known_one(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    member(db, "Ana")
    verified: list[str] = []
    real = accounts._hasher.verify

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(kept, name)

        def verify(self, known: str, password: bytes) -> bool:
            verified.append(known)
            return real(known, password)

    kept = accounts._hasher
    monkeypatch.setattr(accounts, "_hasher", Counting())
    for name in ("Ana", "nobody"):
        with pytest.raises(Forbidden):
            accounts.login(db, name, "wrong password")
    assert len(verified) == 2


@pytest.mark.parametrize("name", ["Ana", "nobody"])
def test_five_failures_lock_a_name_for_fifteen_minutes_known_or_not(
    db: Database, clock: Clock, name: str
) -> None:
    member(db, "Ana")
    for _ in range(5):
        with pytest.raises(Forbidden, match="does not fit"):
            accounts.login(db, name, "wrong password")
    with pytest.raises(Forbidden, match="Wait 15 minutes"):
        accounts.login(db, name, PASSWORD)
    clock.forward(minutes=15, seconds=1)
    if name == "Ana":
        accounts.login(db, name, PASSWORD)


def test_a_success_forgets_the_failures_before_it(db: Database) -> None:
    member(db, "Ana")
    for _ in range(3):
        for _ in range(4):
            with pytest.raises(Forbidden):
                accounts.login(db, "Ana", "wrong password")
        accounts.login(db, "Ana", PASSWORD)


def test_a_session_ends_by_idling_by_age_and_by_logging_out(db: Database, clock: Clock) -> None:
    ana = member(db, "Ana")
    _, token = accounts.login(db, "Ana", PASSWORD)
    clock.forward(minutes=29)
    assert accounts.session_account(db, token) == ana
    clock.forward(minutes=29)
    assert accounts.session_account(db, token) == ana
    clock.forward(minutes=31)
    assert accounts.session_account(db, token) is None

    _, token = accounts.login(db, "Ana", PASSWORD)
    for _ in range(12 * 60 // 20 - 1):
        clock.forward(minutes=20)
        assert accounts.session_account(db, token) == ana
    clock.forward(minutes=20, seconds=1)
    assert accounts.session_account(db, token) is None

    _, token = accounts.login(db, "Ana", PASSWORD)
    accounts.end_session(db, token)
    assert accounts.session_account(db, token) is None
    assert accounts.session_account(db, "made up") is None
    assert accounts.session_account(db, "") is None


def test_a_clock_set_back_does_not_prolong_a_session(db: Database, clock: Clock) -> None:
    member(db, "Ana")
    _, token = accounts.login(db, "Ana", PASSWORD)
    clock.forward(hours=-3)
    assert accounts.session_account(db, token) is None


def test_closing_an_account_ends_its_sessions_and_returns_its_records(clinic: Clinic) -> None:
    ana, bob = member(clinic.db, "Ana"), member(clinic.db, "Bob")
    clinic.round(1)
    _, token = accounts.login(clinic.db, "Ana", PASSWORD)
    assert queue.claim(clinic.db, ana.id) is not None
    assert queue.claim(clinic.db, bob.id) is None
    accounts.deactivate(clinic.db, ana.id, OPERATOR)
    assert accounts.session_account(clinic.db, token) is None
    assert queue.claim(clinic.db, bob.id) is not None
    with pytest.raises(Forbidden):
        queue.claim(clinic.db, ana.id)


def test_nobody_changes_their_own_role_or_account(db: Database) -> None:
    root = member(db, "Root", Role.ADMIN)
    with pytest.raises(Forbidden, match="your own account"):
        accounts.change_role(db, root.id, Role.MANAGER, root.id)
    with pytest.raises(Forbidden, match="your own account"):
        accounts.deactivate(db, root.id, root.id)


def test_a_changed_role_holds_at_once(db: Database) -> None:
    root, ana = member(db, "Root", Role.ADMIN), member(db, "Ana")
    _, token = accounts.login(db, "Ana", PASSWORD)
    accounts.change_role(db, ana.id, Role.AUDITOR, root.id)
    assert accounts.session_account(db, token) is None
    found = accounts.account_by_id(db, ana.id)
    assert found is not None and not found.may(Right.LABEL)


@pytest.mark.parametrize("inviter", list(Role))
@pytest.mark.parametrize("invited", list(Role))
def test_only_leads_and_admins_invite_and_leads_only_those_who_label(
    sqlite_db: Database, inviter: Role, invited: Role
) -> None:
    by = member(sqlite_db, "Inviter", inviter)
    labels = invited in (Role.ANNOTATOR, Role.REVIEWER)
    allowed = inviter is Role.ADMIN or (inviter is Role.MANAGER and labels)
    if allowed:
        assert accounts.invite(sqlite_db, invited, "New", by.id)
    else:
        with pytest.raises(Forbidden):
            accounts.invite(sqlite_db, invited, "New", by.id)


def test_an_admin_neither_labels_nor_signs() -> None:
    assert not accounts.RIGHTS[Role.ADMIN] & {Right.LABEL, Right.ADJUDICATE, Right.SIGN}


def test_every_role_is_listed_and_an_inactive_account_may_nothing(db: Database) -> None:
    assert set(accounts.RIGHTS) == set(Role)
    closed = accounts.Account("a-000000", "x", "x", Role.MANAGER, False, active=False)
    assert not any(closed.may(right) for right in Right)


def test_there_is_one_local_user_and_no_password_opens_it(db: Database) -> None:
    local = accounts.local_user(db)
    assert accounts.local_user(db) == local
    assert local.local and local.may(Right.SIGN)
    for password in ("", "local", PASSWORD):
        with pytest.raises(Forbidden):
            accounts.login(db, "local", password)
    account, token = accounts.open_local_session(db)
    assert accounts.session_account(db, token) == account == local


def test_accounts_and_sessions_are_in_the_trail_without_login_names(db: Database) -> None:
    member(db, "Anastasia")
    accounts.login(db, "Anastasia", PASSWORD)
    told = chain.entries(db)
    assert [entry["action"] for entry in told][1:] == ["invitation.made", "account.created", "session.opened"]
    assert "nastasia" not in repr(told)


def test_lookups_by_token_do_not_depend_on_how_much_of_it_is_right(db: Database) -> None:
    """Tokens are looked up by hash: no prefix of a token tells anything."""
    member(db, "Ana")
    _, token = accounts.login(db, "Ana", PASSWORD)
    with db.read() as conn:
        stored = conn.execute(select(tables.sessions.c.token_sha256)).scalars().all()
    assert token not in stored and all(len(digest) == 64 for digest in stored)


def test_a_login_takes_well_under_a_second(db: Database) -> None:
    member(db, "Ana")
    start = time.monotonic()
    accounts.login(db, "Ana", PASSWORD)
    assert time.monotonic() - start < 1
