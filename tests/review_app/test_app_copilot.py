"""The co-pilot in the app: for whom it speaks up, what is kept of what it said, and the record page."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from review_site import Site
from screen import ready, saved
from scripted_engine import ScriptedEngine

from labeling.database import chain, queue, rounds
from labeling.database.preferences import Preferences, set_preferences
from schemas.project import Engine
from schemas.review import Purpose, QueueItem, RoundState, Seen

TEXTS = ("my alpha pills ran out", "pills of beta ran out", "more alpha pills", "the beta bill")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Records without a suggestion, and an engine that could make one."""
    with ScriptedEngine() as engine:
        made = Site(tmp_path, labels=("alpha", "beta"))
        made.project = made.project.model_copy(
            update={
                "engine": Engine(
                    kind="llama-server", model="scripted", endpoints=(engine.url,), timeout_s=2.0
                ),
                "review": made.project.review.model_copy(update={"copilot": True}),
            }
        )
        made.engine = engine  # type: ignore[attr-defined]
        yield made
        made.db.close()


def helped(client: TestClient, item: dict[str, Any]) -> Any:
    answer = client.post("/api/copilot", json={"assignment_id": item["assignment_id"]})
    assert answer.status_code == 200, answer.text
    return answer.json()["suggestion"]


def decide(client: TestClient, item: dict[str, Any], **more: Any) -> Any:
    sent = {
        "assignment_id": item["assignment_id"],
        "idempotency_key": f"key-{item['record_id']}-{item['version']:06d}",
        "expected_version": item["version"],
        "action": "correct",
        "value": "alpha",
        "seconds": 1.0,
        **more,
    }
    return client.post("/api/decisions", json=sent)


def test_a_suggestion_is_made_from_answers_just_given_and_kept_with_the_decision(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Bob")
    site.round(4, suggestion=None, texts=TEXTS)
    bob, ana = browserless("Bob"), browserless("Ana")
    (of_bob,) = bob.get("/api/next").json()["items"]
    decide(bob, of_bob)
    first, second = ana.get("/api/next?count=2").json()["items"]
    decide(ana, first, value="beta")

    suggestion = helped(ana, second)
    assert (suggestion["value"], suggestion["confidence"], suggestion["by"]) == ("alpha", None, "copilot")
    assert suggestion["recent"] == 2
    assert suggestion["evidence"] == [{"text": TEXTS[1], "label": "beta"}]  # her own answer, not Bob's
    assert "made" not in suggestion
    assert helped(ana, second) == suggestion
    assert site.engine.asked[TEXTS[2]] == 1  # type: ignore[attr-defined]
    out = decide(ana, second, action="accept", copilot=True)
    assert out.json()["action"] == "accept"
    row = queue.decisions_of_round(site.db, 1)[-1]
    assert (row["suggestion_value"], row["seen"]) == ("alpha", "assisted")
    made = json.loads(row["details"])["copilot"]
    assert made["by"] == "copilot" and set(made["exemplars"]) == {"r0", "r1"}
    assert chain.verify_chain(site.db) == []


def test_an_answer_that_ignores_the_co_pilot_says_that_nothing_was_shown(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    site.round(2, suggestion=None, texts=TEXTS)
    ana = browserless("Ana")
    first, second = ana.get("/api/next?count=2").json()["items"]
    assert decide(ana, first, action="accept", copilot=True).status_code == 422  # it never said anything
    helped(ana, second)
    assert decide(ana, second).json()["action"] == "correct"
    (row,) = queue.decisions_of_round(site.db, 1)
    assert (row["suggestion_value"], row["details"]) == (None, None)


def test_blind_records_and_those_of_others_never_get_one(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Bob")
    site.round(2, suggestion=None, texts=TEXTS, blind_every=2)
    ana, bob = browserless("Ana"), browserless("Bob")
    first, second = ana.get("/api/next?count=2").json()["items"]
    assert second["blind"] and helped(ana, second) is None
    assert helped(bob, first) is None
    assert not site.engine.asked  # type: ignore[attr-defined]


def test_project_and_person_can_switch_it_off(site: Site, browserless: Callable[..., TestClient]) -> None:
    ana = site.person("Ana")
    site.round(2, suggestion=None, texts=TEXTS)
    client = browserless("Ana")
    (item,) = client.get("/api/next").json()["items"]
    assert '<meta name="copilot" content="true">' in client.get("/review").text
    set_preferences(site.db, ana.id, Preferences(copilot=False))
    assert helped(client, item) is None
    assert '<meta name="copilot" content="false">' in client.get("/review").text
    review = site.project.review.model_copy(update={"copilot": False})
    site.project = site.project.model_copy(update={"review": review})
    set_preferences(site.db, ana.id, Preferences(copilot=True))
    with TestClient(site.app(), base_url="http://127.0.0.1") as off:
        csrf = off.post("/api/login", json={"name": "Ana", "password": site.password}).json()["csrf"]
        off.headers["X-CSRF-Token"] = csrf
        assert helped(off, item) is None
    assert not site.engine.asked  # type: ignore[attr-defined]


def test_answers_on_audit_and_control_records_teach_nobody(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    rounds.open_round(site.db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")
    purposes = (Purpose.AUDIT, Purpose.CONTROL, Purpose.SELECTED)
    items = [
        QueueItem(
            record_id=f"r{i}",
            purpose=purpose,
            seen=Seen.BLIND if purpose is Purpose.AUDIT else Seen.ASSISTED,
            priority=float(-i),
        )
        for i, purpose in enumerate(purposes)
    ]
    rounds.add_items(site.db, 1, items, {f"r{i}": (TEXTS[i], None) for i in range(3)}, "flow")
    ana = browserless("Ana")
    audit, control, third = ana.get("/api/next?count=3").json()["items"]
    decide(ana, audit), decide(ana, control)
    assert helped(ana, third)["recent"] == 0


def test_the_record_opens_with_a_suggestion_that_is_marked_as_made_just_now(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(6, suggestion=None, texts=TEXTS)
    desk(site)
    ready(page)
    page.wait_for_selector("#suggestion .fresh")
    assert "Suggested just now" in page.inner_text("#suggestion")
    assert "not yet known" in page.inner_text("#suggestion")
    page.keyboard.press("2")
    page.keyboard.press("2")
    page.keyboard.press("1")
    saved(page)
    page.keyboard.press("u")
    page.wait_for_selector("#suggestion .fresh")
    page.wait_for_timeout(450)
    page.keyboard.press("Enter")
    saved(page)
    rows = queue.decisions_of_round(site.db, 1)
    assert rows[-1]["action"] == "accept" and "copilot" in json.loads(rows[-1]["details"])


def test_without_the_engine_records_are_labelled_as_ever(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.project = site.project.model_copy(
        update={"engine": Engine(kind="llama-server", model="x", endpoints=("http://127.0.0.1:9",))}
    )
    site.person("Ana")
    site.round(2, suggestion=None, texts=TEXTS)
    desk(site)
    ready(page)
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.wait_for_selector("body[data-state=rest]")
    saved(page)
    assert [row["value"] for row in queue.decisions_of_round(site.db, 1)] == ["alpha", "beta"]
