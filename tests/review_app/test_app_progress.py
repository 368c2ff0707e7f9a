"""The goal of the day and one's own pace."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from review_site import Site
from screen import ready, saved, until

from labeling.database.preferences import Preferences, preferences, set_preferences
from schemas.errors import QueueError


def with_goal(site: Site, goal: int) -> None:
    review = site.project.review.model_copy(update={"daily_goal": goal})
    site.project = site.project.model_copy(update={"review": review})


def test_today_counts_what_stands_since_the_day_began(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    site.round(4)
    client = browserless("Ana")
    for item in client.get("/api/next?count=3").json()["items"]:
        sent = {
            "assignment_id": item["assignment_id"],
            "idempotency_key": f"key-{item['record_id']}-00",
            "expected_version": 0,
            "action": "skip" if item["record_id"] == "r2" else "accept",
            "value": None if item["record_id"] == "r2" else "Prescription refill",
            "comment": "Not my field",
            "seconds": 2,
        }
        client.post("/api/decisions", json=sent)
    now = datetime.now(UTC)

    def today(**since: float) -> Any:
        moment = (now - timedelta(**since)).isoformat()
        return client.get("/api/progress", params={"since": moment}).json()["today"]

    assert today(hours=1) == 2
    assert today(seconds=-60) == 0
    assert today(days=4000) == 2
    for moment, count in (("9999-12-31T23:59:59-12:00", 0), ("0001-01-01T00:00:00+14:00", 2)):
        assert client.get("/api/progress", params={"since": moment}).json()["today"] == count
    client.post("/api/undo", json={})
    client.post("/api/undo", json={})
    assert today(hours=1) == 1
    assert client.get("/api/progress?since=yesterday").status_code == 422


def test_a_person_s_own_goal_comes_before_the_project_s(site: Site) -> None:
    ana, bob = site.person("Ana"), site.person("Bob")
    with_goal(site, 50)
    set_preferences(site.db, bob.id, Preferences(daily_goal=20))
    with TestClient(site.app(), base_url="http://127.0.0.1", follow_redirects=False) as client:

        def goal(name: str) -> Any:
            csrf = client.post("/api/login", json={"name": name, "password": site.password}).json()["csrf"]
            client.headers["X-CSRF-Token"] = csrf
            return client.get("/api/progress").json()["goal"]

        assert (goal("Ana"), goal("Bob")) == (50, 20)
        answer = client.post("/me", data={"daily_goal": " 0 "})
        assert answer.headers["location"] == "/me?saved=true"
        assert goal("Bob") is None
        assert client.post("/me", data={"daily_goal": "many"}).status_code == 422
    assert preferences(site.db, ana.id) == Preferences()
    with pytest.raises(QueueError, match="0 \\(no goal\\)"):
        set_preferences(site.db, ana.id, Preferences(daily_goal=-1))


def test_the_page_counts_towards_the_goal_and_says_when_it_is_reached(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(5)
    with_goal(site, 2)
    server = desk(site)
    ready(page)
    until(page, "document.querySelector('#today').textContent.startsWith('Today 0 of 2')")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#today').textContent.startsWith('Today 1 of 2')")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#today').textContent === 'Today 2 of 2: goal reached'")
    saved(page)
    page.goto(server.url + "/me")
    assert "2 records" in page.inner_text(".figures")
    page.fill("#daily_goal", "9")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Saved.")
    page.goto(server.url + "/review")
    ready(page)
    until(page, "document.querySelector('#today').textContent.startsWith('Today 2 of 9')")
