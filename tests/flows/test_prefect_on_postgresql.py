"""Prefect with its runs in PostgreSQL: a gate waits there, the server is killed, and the signature is still taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from deployed import Deployed, come_about, kill, prefect_at, with_gold
from postgresql_cluster import private_postgresql
from test_gate import label_everything, person

from deployments.services import answers, free_port, start_prefect_server, start_runner
from labeling import paths
from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.project_file import load_project
from schemas.review import Role, RoundState

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    if paths.models().is_dir():
        (home / "models").symlink_to(paths.models())
    monkeypatch.setenv("COUNTERSIGN_HOME", str(home))
    return home


@pytest.mark.campaign
def test_a_gate_in_postgresql_outlives_the_server(
    own_home: Path, lettered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from countersign.daily import resume, wait_for_deployment

    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5})
    name = with_gold(root, "postgres")
    port = free_port()
    with private_postgresql(port) as socket:
        with psycopg.connect(
            f"postgresql://countersign@/postgres?host={socket}&port={port}", autocommit=True
        ) as admin:
            admin.execute("CREATE DATABASE prefect")
        monkeypatch.setenv(DATABASE, f"postgresql+asyncpg://countersign@127.0.0.1:{port}/prefect")
        server = start_prefect_server(port=free_port())
        with prefect_at(server.url):
            runner = start_runner(server.url, [root])
            wait_for_deployment(f"remind/{name}")
            project = Deployed(name, root)
            for phase in ("setup", "pre_annotate"):
                project.await_kind(project.begin(phase), "COMPLETED")
            run = project.begin("review")
            project.await_kind(run, "PAUSED")

            kill(server)
            again = server.again()
            come_about(lambda: answers(f"{server.url}/api/health"))
            loaded, folder = load_project(root)
            with project_database(loaded, folder) as db:
                person(db, Role.MANAGER, "lena")
            label_everything(root)
            resume(run, {"verdict": "approve", "signed_by": "lena", "note": "checked"})
            project.await_kind(run, "COMPLETED")
            runner.stop()
        again.stop()
        server.stop()
    with project_database(loaded, folder) as db:
        assert rounds.state_of(db, 1) is RoundState.SIGNED
    assert not list((own_home / "services" / "prefect").glob("*.db"))
