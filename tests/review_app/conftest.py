"""A clinic's project, its review app (in the process, or as a real server for a browser), and people to log in."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient
from review_site import PASSWORD, Server, Site
from screen import log_in

from labeling.database import accounts


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    kept = accounts._hasher
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    yield
    accounts._hasher = kept


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.db.close()


@pytest.fixture
def browserless(site: Site) -> Iterator[Callable[..., TestClient]]:
    """Makes HTTP clients of one running app, logged in as a person if named."""
    app = site.app(local_user=True, requests_per_s=10_000, logins_per_s=1_000)
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as first:
        others: list[TestClient] = []

        def client(name: str | None = None) -> TestClient:
            # Not entered: the app runs already, a second lifespan would open the database again.
            made = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
            others.append(made)
            if name is not None:
                answer = made.post("/api/login", json={"name": name, "password": PASSWORD})
                assert answer.status_code == 200, answer.text
                made.headers["X-CSRF-Token"] = answer.json()["csrf"]
            return made

        yield client
        del first


@pytest.fixture
def serve() -> Iterator[Callable[[FastAPI], Server]]:
    servers: list[Server] = []

    def start(app: FastAPI) -> Server:
        servers.append(Server(app))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        message = "Chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *quiet],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails the test when a script breaks or the policy blocks something."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    made = context.new_page()
    made.set_default_timeout(15_000)
    problems: list[str] = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda said: "Content Security" in said.text and problems.append(said.text))
    yield made
    context.close()
    assert problems == []


@pytest.fixture
def desk(serve: Callable[[FastAPI], Server], page: Any) -> Callable[..., Any]:
    """Opens the record page of a site as somebody."""

    def open_desk(site: Site, name: str = "Ana", path: str = "/review") -> Any:
        server = serve(site.app(requests_per_s=10_000, logins_per_s=100))
        log_in(page, server.url, name)
        page.goto(server.url + path)
        return server

    return open_desk
