"""The JSON interface as review_app/README.md describes it; what simulated annotators rely on."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from review_site import Site

from labeling.database import accounts, chain, queue, rounds
from labeling.database.connection import Database
from schemas.errors import StorageError
from schemas.review import Role, SignOff


def decision(item: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "assignment_id": item["assignment_id"],
        "idempotency_key": f"key-{item['record_id']}-{item['version']:06d}",
        "expected_version": item["version"],
        "action": "accept",
        "value": "Prescription refill",
        "seconds": 2.5,
        **more,
    }


def test_a_simulated_annotator_labels_a_round_from_invitation_to_signature(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Lea", Role.MANAGER)
    site.round(8, blind_every=4)
    token = accounts.invite(site.db, Role.ANNOTATOR, "Simulated 1", accounts.OPERATOR)
    client = browserless()
    answer = client.post(
        "/api/invitation", json={"token": token, "name": "sim-1", "password": "a long password"}
    )
    me = answer.json()
    assert answer.status_code == 200 and me["role"] == "annotator"
    client.headers["X-CSRF-Token"] = me["csrf"]
    done = 0
    while items := client.get("/api/next?count=3").json()["items"]:
        for item in items:
            value = "Billing" if item["blind"] else item["suggestion"]["value"]
            sent = decision(item, value=value, action="correct" if item["blind"] else "accept")
            out = client.post("/api/decisions", json=sent)
            assert out.status_code == 200 and not out.json()["repeated"]
            assert client.post("/api/decisions", json=sent).json()["repeated"]
            done += 1
    assert done == 8
    assert client.get("/api/progress").json()["left"] == 0
    assert rounds.sign(site.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    assert {row["annotator_id"] for row in queue.decisions_of_round(site.db, 1)} == {me["annotator_id"]}


def test_a_refusal_says_what_was_found_expected_and_to_do(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    site.round(1)
    client = browserless("Ana")
    item = client.get("/api/next").json()["items"][0]
    answer = client.post("/api/decisions", json=decision(item, value="Weather", action="correct"))
    assert answer.status_code == 422
    assert set(answer.json()) == {"path", "found", "expected", "next"}
    assert "Weather" in answer.json()["found"]


def test_a_conflict_carries_both_versions(site: Site, browserless: Callable[..., TestClient]) -> None:
    site.person("Ana")
    site.round(1)
    left, right = browserless("Ana"), browserless("Ana")
    item = left.get("/api/next").json()["items"][0]
    left.post("/api/decisions", json=decision(item))
    other = decision(item, value="Billing", action="correct", idempotency_key="another-key")
    answer = right.post("/api/decisions", json=other)
    assert answer.status_code == 409
    assert answer.json()["sent"]["value"] == "Billing"
    assert answer.json()["stored"]["value"] == "Prescription refill"


def test_undo_returns_the_record_with_its_new_version(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    site.round(2)
    client = browserless("Ana")
    item = client.get("/api/next").json()["items"][0]
    made = client.post("/api/decisions", json=decision(item)).json()
    undone = client.post("/api/undo", json={"idempotency_key": "undo-0001"}).json()
    assert undone["undone"] == made["annotation_id"]
    assert undone["item"]["previous"]["value"] == "Prescription refill"
    assert client.post("/api/undo", json={"idempotency_key": "undo-0001"}).json() == undone
    assert client.get("/api/next").json()["items"][0]["record_id"] == item["record_id"]
    assert client.post("/api/decisions", json=decision(undone["item"])).status_code == 200
    shown = client.get("/api/history").json()["decisions"]
    assert [row["undone"] for row in shown] == [False, True]
    client.post("/api/undo", json={})
    assert client.post("/api/undo", json={}).json() == {"undone": None, "record_id": None, "item": None}


def test_comments_and_flags_are_stored(site: Site, browserless: Callable[..., TestClient]) -> None:
    site.person("Ana")
    site.round(1)
    client = browserless("Ana")
    item = client.get("/api/next").json()["items"][0]
    said = {"assignment_id": item["assignment_id"], "text": "<b>Two</b> requests 👩‍⚕️"}
    assert client.post("/api/comments", json=said).status_code == 200
    shown = client.get(f"/api/comments?assignment_id={item['assignment_id']}").json()["comments"]
    assert [one["text"] for one in shown] == ["<b>Two</b> requests 👩‍⚕️"]
    client.post("/api/flags", json={"assignment_id": item["assignment_id"], "raised": True})
    assert client.get("/api/next").json()["items"][0]["flagged"] is True


def test_disputes_are_settled_over_the_interface(site: Site, browserless: Callable[..., TestClient]) -> None:
    ana, bob = site.person("Ana"), site.person("Bob")
    site.person("Rea", Role.REVIEWER), site.person("Lea", Role.MANAGER)
    site.round(1, overlap=2)
    for name, value in (("Ana", "Prescription refill"), ("Bob", "Billing")):
        client = browserless(name)
        item = client.get("/api/next").json()["items"][0]
        client.post("/api/decisions", json=decision(item, value=value, action="correct"))
    rounds.sign(site.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    rounds.start_adjudication(site.db, 1, {"r0": "Two annotators disagree."})
    client = browserless("Rea")
    answer = client.get("/api/disputes")
    (dispute,) = answer.json()["disputes"]
    assert {card["value"] for card in dispute["cards"]} == {"Prescription refill", "Billing"}
    assert ana.id not in answer.text and bob.id not in answer.text
    body = {
        "round": 1,
        "record_id": "r0",
        "value": "Billing",
        "expected_version": dispute["version"],
        "idempotency_key": "settle-01",
    }
    assert client.post("/api/adjudications", json=body).json()["value"] == "Billing"
    other = {**body, "value": "Test results", "idempotency_key": "settle-02"}
    conflict = browserless("Lea").post("/api/adjudications", json=other)
    assert conflict.status_code == 409 and conflict.json()["stored"]["value"] == "Billing"
    rounds.close_round(site.db, 1)


def test_lists_are_stored_sorted_however_the_browser_sends_them(tmp_path: Any) -> None:
    site = Site(tmp_path, "multilabel")
    site.person("Ana")
    site.round(1)
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        me = client.post("/api/login", json={"name": "Ana", "password": site.password}).json()
        client.headers["X-CSRF-Token"] = me["csrf"]
        item = client.get("/api/next").json()["items"][0]
        sent = decision(item, value=["Test results", "Billing"], action="correct")
        assert client.post("/api/decisions", json=sent).json()["value"] == ["Billing", "Test results"]
        assert client.post("/api/decisions", json=sent).json()["repeated"]
    site.db.close()


def test_a_database_that_cannot_be_written_is_said_so_and_nothing_is_called_saved(
    site: Site, browserless: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.person("Ana")
    site.round(1)
    client = browserless("Ana")
    item = client.get("/api/next").json()["items"][0]

    def full(self: Database, *_: object) -> Any:
        raise StorageError(
            "countersign.db", found="the disk is full", expected="space", next_step="Free some."
        )

    monkeypatch.setattr(Database, "write", full)
    monkeypatch.setattr(Database, "together", full)
    answer = client.post("/api/decisions", json=decision(item))
    assert (answer.status_code, answer.json()["found"]) == (503, "the disk is full")
    monkeypatch.undo()
    assert client.post("/api/decisions", json=decision(item)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"assignment_id": 1e400}',
        b'{"assignment_id": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"assignment_id": ' + b"9" * 5000 + b"}",
        b'{"value": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_decision_is_refused_in_the_same_shape(
    site: Site, browserless: Callable[..., TestClient], body: bytes
) -> None:
    site.person("Ana")
    client = browserless("Ana")
    answer = client.post("/api/decisions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"path", "found", "expected", "next"}


@pytest.mark.parametrize("value", ["a\\u0000b", "\\ud83d"])
def test_text_that_no_database_can_hold_is_refused(
    site: Site, browserless: Callable[..., TestClient], value: str
) -> None:
    site.person("Ana")
    site.round(1)
    client = browserless("Ana")
    item = client.get("/api/next").json()["items"][0]
    body = f'{{"assignment_id": {item["assignment_id"]}, "text": "{value}"}}'
    headers = {"Content-Type": "application/json"}
    assert client.post("/api/comments", content=body.encode(), headers=headers).status_code == 422


@pytest.mark.parametrize("task", ["classification", "multilabel", "entities", "pairs"])
@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        {},
        [],
        [[]],
        [{}],
        [1],
        "",
        {"start": 0},
        [{"start": "0", "end": 2, "label": [], "quote": {}}],
    ],
)
def test_a_value_of_another_shape_is_refused_or_legal_but_never_an_error_of_ours(
    tmp_path: Any, task: str, value: Any
) -> None:
    site = Site(tmp_path, task)
    ana = site.person("Ana")
    site.round(1, suggestion=None)
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        me = client.post("/api/login", json={"name": "Ana", "password": site.password}).json()
        client.headers["X-CSRF-Token"] = me["csrf"]
        item = client.get("/api/next").json()["items"][0]
        status = client.post("/api/decisions", json=decision(item, value=value, action="correct")).status_code
        legal = value == [] and task in ("multilabel", "entities")
        assert status == (200 if legal else 422)
    assert ana.id
    site.db.close()


def test_the_readme_describes_every_route_of_the_interface(site: Site) -> None:
    from pathlib import Path

    from test_app_access import routes

    import review_app

    told = (Path(review_app.__file__).parent / "README.md").read_text("utf-8")
    for route in routes(site.app()):
        if route.path.startswith("/api/") or route.path == "/healthz":
            assert route.path in told, route.path


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("Rea", 4),
        (None, 2),
        pytest.param("Ana", 100, marks=pytest.mark.campaign),
        pytest.param("Rea", 100, marks=pytest.mark.campaign),
    ],
)
def test_no_request_that_a_fuzzer_makes_is_an_error_of_ours(
    site: Site, browserless: Callable[..., TestClient], name: str | None, examples: int
) -> None:
    site.person("Ana"), site.person("Rea", Role.REVIEWER)
    site.round(4)
    client = browserless(name)
    from fastapi.openapi.utils import get_openapi
    from test_app_access import routes

    found = [route for route in routes(client.app) if route.path.startswith("/api/")]
    schema = schemathesis.openapi.from_dict(get_openapi(title="x", version="1", routes=found))
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/api/logout", "/api/login", "/api/invitation"):
            continue

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @_given(operation)
        def attack(case: Any) -> None:
            answer = client.request(
                case.method,
                case.formatted_path,
                params=case.query or None,
                **({"json": case.body} if case.method == "POST" and _is_json(case.body) else {}),
            )
            assert answer.status_code < 500, (operation.label, answer.text)
            if name is None:
                assert answer.status_code == 401

        attack()
    assert chain.verify_chain(site.db) == []


def _is_json(body: Any) -> bool:
    return isinstance(body, dict | list | str | int | float | bool | None)


def _given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())
