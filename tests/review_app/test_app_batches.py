"""Batch review: what may be in one, that each record is a decision of its own, and the page."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from review_site import Site

from labeling.database import chain, queue, rounds
from schemas.review import Purpose, QueueItem, RoundState, Seen


def mixed(site: Site) -> None:
    """Confident Billing and Refill records, an unsure one, and all that is never in a batch."""
    rounds.open_round(site.db, 1, state=RoundState.OPEN, rehearsal=False, actor="flow")
    rows: list[tuple[str, Purpose, Seen, str, float | None]] = [
        *((f"b{i}", Purpose.SELECTED, Seen.ASSISTED, "Billing", 0.99 - i / 100) for i in range(5)),
        *((f"p{i}", Purpose.SELECTED, Seen.ASSISTED, "Prescription refill", 0.95) for i in range(3)),
        ("unsure", Purpose.SELECTED, Seen.ASSISTED, "Billing", 0.89),
        ("unknown", Purpose.SELECTED, Seen.ASSISTED, "Billing", None),
        ("audit", Purpose.AUDIT, Seen.BLIND, "Billing", 0.99),
        ("control", Purpose.CONTROL, Seen.ASSISTED, "Billing", 0.99),
        ("overlap", Purpose.OVERLAP, Seen.ASSISTED, "Billing", 0.99),
    ]
    items = [
        QueueItem(record_id=name, purpose=purpose, seen=seen, priority=0.0)
        for name, purpose, seen, _, _ in rows
    ]
    content = {
        name: (
            f"Message {name} about {label.lower()}",
            {"value": label, "confidence": confidence, "by": "llm"},
        )
        for name, _, _, label, confidence in rows
    }
    rounds.add_items(site.db, 1, items, content, "flow")


def accept(item: dict[str, Any], size: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "assignment_id": item["assignment_id"],
        "idempotency_key": f"key-{item['record_id']}-{item['version']:06d}",
        "expected_version": item["version"],
        "action": "accept",
        "value": item["suggestion"]["value"],
        "seconds": 0.8,
        "batch": {"id": "batch-0001", "size": size},
        **more,
    }


def test_only_confident_selected_records_are_offered_by_label_the_surest_first(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    mixed(site)
    ana = browserless("Ana")
    groups = ana.get("/api/batches").json()["groups"]
    assert [(group["labels"], group["records"]) for group in groups] == [
        (["Billing"], 5),
        (["Prescription refill"], 3),
    ]
    items = ana.get("/api/batch?labels=Billing").json()["items"]
    assert [item["record_id"] for item in items] == ["b0", "b1", "b2", "b3", "b4"]
    unticked = f"without={items[0]['assignment_id']}"
    assert len(ana.get(f"/api/batch?labels=Billing&{unticked}").json()["items"]) == 4
    assert [group["records"] for group in ana.get(f"/api/batches?{unticked}").json()["groups"]] == [4, 3]


def test_every_record_of_a_batch_is_a_decision_of_its_own_that_says_so(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    mixed(site)
    ana = browserless("Ana")
    items = ana.get("/api/batch?labels=Billing&order=alike").json()["items"]
    for item in items[:2]:
        assert ana.post("/api/decisions", json=accept(item)).status_code == 200
        assert ana.post("/api/decisions", json=accept(item)).json()["repeated"] is True
    rows = queue.decisions_of_round(site.db, 1)
    assert [row["details"] for row in rows] == ['{"batch":{"id":"batch-0001","size":2}}'] * 2
    assert len({row["annotation_id"] for row in rows}) == 2
    assert chain.verify_chain(site.db) == []


@pytest.mark.parametrize("name", ["audit", "control", "overlap"])
def test_what_everything_is_measured_by_is_refused_in_a_batch(
    site: Site, browserless: Callable[..., TestClient], name: str
) -> None:
    site.person("Ana")
    mixed(site)
    ana = browserless("Ana")
    items = {item["record_id"]: item for item in ana.get("/api/next?count=50").json()["items"]}
    item = items[name]
    sent = accept(items["b0"]) | {"assignment_id": item["assignment_id"], "idempotency_key": "another-key"}
    sent |= {"value": "Billing", "action": "correct" if item["blind"] else "accept"}
    answer = ana.post("/api/decisions", json=sent)
    assert answer.status_code == 422 and answer.json()["path"] == "batch"
    correct = accept(items["b0"], action="correct", value="Test results", idempotency_key="third-key")
    assert ana.post("/api/decisions", json=correct).status_code == 422
    assert queue.decisions_of_round(site.db, 1) == []


def test_two_people_never_get_the_same_record_in_their_batches(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Bob")
    mixed(site)
    ana = browserless("Ana").get("/api/batch?labels=Billing").json()["items"]
    bob = browserless("Bob").get("/api/batch?labels=Billing").json()["items"]
    assert len(ana) == 5 and bob == []


def test_a_project_can_have_every_record_decided_one_by_one(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    review = site.project.review.model_copy(update={"batch_from": None})
    site.project = site.project.model_copy(update={"review": review})
    site.person("Ana")
    mixed(site)
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        client.post("/api/login", json={"name": "Ana", "password": site.password})
        assert client.get("/api/batches").json() == {"least": None, "groups": []}
        assert client.get("/api/batch?labels=Billing").json() == {"items": []}


def test_an_expert_unticks_one_accepts_the_rest_by_one_key_and_takes_it_back(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    mixed(site)
    desk(site, path="/batch")
    page.wait_for_selector(".groups")
    assert "5 records" in page.inner_text(".groups")
    page.keyboard.press("1")
    page.wait_for_selector(".batch-list")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.inner_text("#accept").endswith("Accept 4, leave 1 for later")
    page.keyboard.press("Enter")
    page.wait_for_selector("#toast:has-text('4 records saved')")
    assert "1 record left out" in page.inner_text("#notice")
    rows = queue.decisions_of_round(site.db, 1)
    assert sorted(row["record_id"] for row in rows) == ["b0", "b2", "b3", "b4"]
    assert all(row["action"] == "accept" and row["seconds"] > 0 for row in rows)
    page.wait_for_selector(".groups")
    page.keyboard.press("u")
    page.wait_for_selector("#toast:has-text('4 records taken back')")
    assert queue.decisions_of_round(site.db, 1) == []
    assert chain.verify_chain(site.db) == []
