"""Simulated annotators are ordinary users of the review app."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.services import start_review_app
from labeling.database import accounts
from labeling.database.opening import project_database
from labeling.project_file import load_project
from labeling.rehearsal import SimulatedPerson, erring
from schemas.errors import QueueError
from schemas.review import Role


@pytest.fixture
def sampled(installation: Any, lettered: Callable[..., Any]) -> Path:
    """A project whose sample waits to be labelled."""
    root, _ = lettered(60, embedding={"kind": "none"})
    installation.command("run", root, check=3)
    return Path(root)


def test_a_person_whose_session_ended_logs_in_again_and_goes_on(sampled: Path) -> None:
    project, folder = load_project(sampled)
    with project_database(project, folder) as db:
        token = accounts.invite(db, Role.ANNOTATOR, "Sim", by=accounts.OPERATOR)
    app = start_review_app(folder.root, project.name, local_user=False)
    try:
        person = SimulatedPerson(app.url, name="sim-1", invitation=token, password=secrets.token_urlsafe(18))
        person._http.cookies.clear()  # what the server's idle limit does to the session

        decided = person.label_all(lambda _: "alpha", seed=1)

        assert decided == 20
        person.close()
    finally:
        app.stop()


def test_a_used_invitation_is_refused_in_words(sampled: Path) -> None:
    project, folder = load_project(sampled)
    with project_database(project, folder) as db:
        token = accounts.invite(db, Role.ANNOTATOR, "Sim", by=accounts.OPERATOR)
    app = start_review_app(folder.root, project.name, local_user=False)
    try:
        SimulatedPerson(app.url, name="sim-1", invitation=token, password=secrets.token_urlsafe(18)).close()
        with pytest.raises(QueueError) as caught:
            SimulatedPerson(app.url, name="sim-2", invitation=token, password=secrets.token_urlsafe(18))
    finally:
        app.stop()

    assert "HTTP" in caught.value.found


def test_a_person_errs_on_the_same_records_each_time() -> None:
    truth = {f"r{index}": "alpha" for index in range(1000)}
    answer = erring(truth, ["alpha", "beta"], error_share=0.1, seed=3, name="sim-1")

    first = [record for record in truth if answer(record) != "alpha"]
    second = [record for record in truth if answer(record) != "alpha"]

    assert first == second
    assert 60 <= len(first) <= 140
