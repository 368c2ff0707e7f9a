"""Deny by default: every route, every role, and other people's records."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from review_site import Site

from labeling.database import accounts, pools, queue, rounds
from review_app import access
from review_app.guard import CSP
from schemas.errors import ProjectError
from schemas.review import Role, SignOff

ANYONE = {None, *Role}
MEMBERS = set(Role)
LABELLERS = {Role.ANNOTATOR, Role.REVIEWER, Role.MANAGER}
ADJUDICATORS = {Role.REVIEWER, Role.MANAGER}
FINDERS = LABELLERS | {Role.AUDITOR}
LEADS = {Role.MANAGER}
BOARD = {Role.MANAGER, Role.AUDITOR}
INVITERS = {Role.MANAGER, Role.ADMIN}
ADMINS = {Role.ADMIN}

# Written by hand: a new route fails the first test until somebody has said here who may call it.
EXPECTED: dict[tuple[str, str], set[Role | None]] = {
    ("GET", "/healthz"): ANYONE,
    ("POST", "/api/login"): ANYONE,
    ("POST", "/api/invitation"): ANYONE,
    ("GET", "/login"): ANYONE,
    ("POST", "/login"): ANYONE,
    ("GET", "/invitation/{token}"): ANYONE,
    ("POST", "/invitation/{token}"): ANYONE,
    ("POST", "/api/logout"): MEMBERS,
    ("POST", "/logout"): MEMBERS,
    ("GET", "/api/session"): MEMBERS,
    ("GET", "/"): MEMBERS,
    ("GET", "/api/next"): LABELLERS,
    ("POST", "/api/decisions"): LABELLERS,
    ("POST", "/api/undo"): LABELLERS,
    ("GET", "/api/progress"): LABELLERS,
    ("GET", "/api/history"): LABELLERS,
    ("GET", "/api/comments"): LABELLERS,
    ("POST", "/api/comments"): LABELLERS,
    ("POST", "/api/flags"): LABELLERS,
    ("GET", "/review"): LABELLERS,
    ("GET", "/history"): LABELLERS,
    ("GET", "/records"): FINDERS,
    ("GET", "/records/{item_id}"): FINDERS,
    ("POST", "/records/{item_id}/take"): LABELLERS,
    ("GET", "/batch"): LABELLERS,
    ("GET", "/api/batches"): LABELLERS,
    ("GET", "/api/batch"): LABELLERS,
    ("POST", "/api/copilot"): LABELLERS,
    ("GET", "/me"): LABELLERS,
    ("POST", "/me"): LABELLERS,
    ("POST", "/records/{item_id}/give"): LEADS,
    ("POST", "/records/give"): LEADS,
    ("POST", "/history/{annotation_id}/undo"): LABELLERS,
    ("GET", "/api/disputes"): ADJUDICATORS,
    ("POST", "/api/adjudications"): ADJUDICATORS,
    ("GET", "/adjudication"): ADJUDICATORS,
    ("GET", "/board"): BOARD,
    ("GET", "/reports/{number}"): BOARD,
    ("GET", "/schema"): LEADS,
    ("POST", "/schema"): LEADS,
    ("GET", "/schema/versions/{kind}/{number}"): LEADS,
    ("GET", "/people"): INVITERS,
    ("POST", "/people/invitations"): INVITERS,
    ("POST", "/people/invitations/{invitation_id}/revoke"): INVITERS,
    ("POST", "/people/pools"): LEADS,
    ("POST", "/people/pools/{pool_id}"): LEADS,
    ("POST", "/people/{account_id}/close"): ADMINS,
    ("POST", "/people/{account_id}/role"): ADMINS,
}
FILL = {
    "token": "t" * 43,
    "annotation_id": "d-0",
    "number": "1",
    "kind": "schema",
    "item_id": "1",
    "pool_id": "1",
    "invitation_id": "1",
    "account_id": "a-000000",
}


def routes(app: Any) -> list[APIRoute]:
    found: list[APIRoute] = []
    for route in app.routes:
        if isinstance(route, APIRoute):
            found.append(route)
        elif hasattr(route, "routes") and not hasattr(route, "app"):
            found += routes(route)
        elif hasattr(route, "original_router"):
            found += routes(route.original_router)
    return found


def test_every_route_is_in_the_table_and_the_other_way_round(site: Site) -> None:
    found = {(method, route.path) for route in routes(site.app()) for method in route.methods or ()}
    assert found == set(EXPECTED)


def test_every_endpoint_is_registered_with_what_it_takes(site: Site) -> None:
    assert {route.endpoint for route in routes(site.app())} == set(access.ACCESS)


@pytest.mark.parametrize("role", [None, *Role], ids=lambda role: role.value if role else "nobody")
def test_each_role_reaches_exactly_its_routes(
    site: Site, browserless: Callable[..., TestClient], role: Role | None
) -> None:
    if role is not None:
        site.person("Ana", role)
    for (method, path), allowed in EXPECTED.items():
        client = browserless("Ana" if role else None)
        url = path.format(**FILL)
        answer = client.request(method, url, **({"json": {}} if method == "POST" else {}))
        to_login = answer.status_code == 303 and answer.headers["location"] == "/login"
        logged_out = path == "/logout" and role is not None
        turned_away = answer.status_code in (401, 403) or (to_login and not logged_out)
        what = f"{role} {method} {path}: {answer.status_code} {answer.text[:200]}"
        if role in allowed:
            # A form without its token, or a login without a password, is turned away for that.
            if path in ("/api/login", "/login") or (role is None and method == "POST"):
                assert answer.status_code != 500, what
            elif path != "/history/{annotation_id}/undo":  # not a decision of theirs
                assert not turned_away, what
        else:
            assert turned_away, what
        assert answer.status_code < 500, what


def test_an_endpoint_that_nobody_registered_is_closed_to_everybody(site: Site) -> None:
    site.person("Lea", Role.MANAGER)
    app = site.app()

    @app.get("/forgotten")
    def forgotten() -> str:
        return "secret"

    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.post("/api/login", json={"name": "Lea", "password": site.password})
        answer = client.get("/forgotten")
        assert answer.status_code == 403
        assert "secret" not in answer.text


def test_somebody_else_s_records_and_decisions_are_out_of_reach(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Bob")
    site.round(2)
    ana, bob = browserless("Ana"), browserless("Bob")
    held = ana.get("/api/next").json()["items"][0]
    sent = {
        "assignment_id": held["assignment_id"],
        "idempotency_key": "12345678",
        "expected_version": held["version"],
        "action": "accept",
        "value": "Prescription refill",
        "seconds": 1,
    }
    assert bob.post("/api/decisions", json=sent).status_code == 403
    assert bob.get(f"/api/comments?assignment_id={held['assignment_id']}").status_code == 403
    assert (
        bob.post("/api/flags", json={"assignment_id": held["assignment_id"], "raised": True}).status_code
        == 403
    )
    made = ana.post("/api/decisions", json=sent).json()["annotation_id"]
    assert bob.post("/api/undo", json={"annotation_id": made}).status_code == 403
    assert bob.post(f"/history/{made}/undo").status_code == 403
    assert ana.post("/api/undo", json={"annotation_id": made}).status_code == 200


def test_records_of_others_are_not_found_looked_at_or_taken(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Bob"), site.person("Lea", Role.MANAGER)
    site.round(2)
    ana, bob, lea = browserless("Ana"), browserless("Bob"), browserless("Lea")
    held = ana.get("/api/next").json()["items"][0]
    sent = {
        "assignment_id": held["assignment_id"],
        "idempotency_key": "12345678",
        "expected_version": held["version"],
        "action": "correct",
        "value": "Billing",
        "seconds": 1,
        "comment": "Only for the adjudicator.",
    }
    ana.post("/api/decisions", json=sent)
    assert "Only for the adjudicator" in ana.get("/records/1").text
    assert "Only for the adjudicator" in lea.get("/records/1").text
    for answer in (bob.get("/records/1"), bob.get("/records/99")):
        assert answer.status_code == 404 and "Billing" not in answer.text
    assert bob.get("/records").text.count('class="open"') == 1
    assert bob.post("/records/1/take").status_code == 409
    assert (
        bob.get(f"/records?who={queue.decisions_of_round(site.db, 1)[0]['annotator_id']}").status_code == 403
    )
    assert "Annotator</label>" not in bob.get("/records").text
    assert "Annotator</label>" in lea.get("/records").text
    taken = bob.post("/records/2/take")
    assert taken.headers["location"].startswith("/review?first=")
    assert bob.post("/records/2/give", data={"to": ""}).status_code == 403
    assert bob.post("/records/give", data={"round": "1", "to": ""}).status_code == 403
    pool = pools.make_pool(site.db, "Nurses", accounts.people(site.db)[2].id)
    given = lea.post(
        "/records/give", data={"round": "1", "label": "Prescription refill", "to": f"pool:{pool}"}
    )
    assert given.headers["location"] == "/records?round=1&state=all&label=Prescription+refill&order=queue"
    assert bob.get("/records").text.count('class="open"') == 0


def test_an_unsafe_request_needs_the_token_of_its_own_session(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Bob")
    ana, bob = browserless("Ana"), browserless("Bob")
    for token in ("", "x" * 64, bob.headers["X-CSRF-Token"], "é"):
        answer = ana.post("/api/undo", json={}, headers={"X-CSRF-Token": token.encode()})
        assert (answer.status_code, answer.json()["path"]) == (403, "csrf")
    assert ana.post("/logout", data={"csrf": "wrong"}, headers={"X-CSRF-Token": ""}).status_code == 403
    assert ana.post("/api/undo", json={}).status_code == 200


def test_a_login_form_from_another_site_is_refused(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    client = browserless()
    form = {"name": "Ana", "password": site.password}
    assert client.post("/login", data=form).status_code == 403
    client.get("/login")
    assert client.post("/login", data={**form, "csrf": "guessed"}).status_code == 403
    token = client.cookies["countersign_form"]
    assert client.post("/login", data={**form, "csrf": token}).headers["location"] == "/"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = browserless().post("/api/login", json=form, headers=headers)
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "[", "localhost@evil.example"]
)
def test_a_host_name_that_is_not_ours_is_refused(browserless: Callable[..., TestClient], host: str) -> None:
    assert browserless().get("/login", headers={"Host": host}).status_code == 400


def test_every_answer_carries_the_security_headers(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    client = browserless()
    for path in ("/login", "/nothing-here", "/static/app.css", "/api/session", "/healthz"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == CSP, path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] in ("no-store", "no-cache")
    refused = client.get("/login", headers={"Host": "evil.example"})
    assert refused.headers["content-security-policy"] == CSP


def test_there_are_no_generated_documentation_pages(browserless: Callable[..., TestClient]) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert browserless().get(path).status_code == 404


def test_the_session_cookie_is_for_this_site_and_not_for_scripts(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    answer = browserless().post("/api/login", json={"name": "Ana", "password": site.password})
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("countersign=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    with TestClient(site.app(https=True), base_url="https://127.0.0.1") as secure:
        answer = secure.post("/api/login", json={"name": "Ana", "password": site.password})
        (cookie,) = answer.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-countersign=")
        assert "Secure" in cookie.split("; ") and "Domain" not in cookie
        assert answer.headers["strict-transport-security"]


def test_a_user_without_a_password_exists_on_loopback_only(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    with pytest.raises(ProjectError, match="serve on loopback only"):
        site.app(local_user=True, host="0.0.0.0")
    assert browserless().post("/api/login", json={"local": True}).status_code == 200
    assert "without a password" in browserless().get("/login").text
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        assert client.post("/api/login", json={"local": True}).status_code == 401
        assert "without a password" not in client.get("/login").text


def test_an_invitation_made_behind_tls_is_a_link_of_that_address(site: Site) -> None:
    site.person("Lea", Role.MANAGER)
    # The proxy speaks HTTP to the app, and the browser HTTPS to the proxy.
    with TestClient(site.app(https=True), base_url="http://127.0.0.1") as proxy:
        told = proxy.post("/api/login", json={"name": "Lea", "password": site.password})
        cookie = told.headers["set-cookie"].partition(";")[0]
        page = proxy.post(
            "/people/invitations",
            data={"role": "annotator", "display_name": "Noor"},
            headers={"cookie": cookie, "x-csrf-token": told.json()["csrf"]},
        )
    assert page.status_code == 200
    assert 'value="https://127.0.0.1/invitation/' in page.text


def test_a_flood_is_slowed_down(site: Site) -> None:
    with TestClient(site.app(requests_per_s=1), base_url="http://127.0.0.1") as client:
        answers = [client.get("/healthz") for _ in range(15)]
        assert answers[0].status_code == 200
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/login", "/api/login", "/api/invitation", "/invitation/guessed"])
def test_whoever_makes_the_server_hash_passwords_is_slowed_down(site: Site, path: str) -> None:
    with TestClient(site.app(), base_url="http://127.0.0.1") as client:
        answers = {client.post(path).status_code for _ in range(35)}
    assert 429 in answers


def test_a_body_that_is_too_large_is_refused(site: Site, browserless: Callable[..., TestClient]) -> None:
    site.person("Ana")
    client = browserless("Ana")
    assert client.post("/api/undo", content=b"x" * 2_000_001).status_code == 413

    def endless() -> Any:
        for _ in range(300):
            yield b"x" * 10_000

    assert client.post("/api/undo", content=endless()).status_code == 413


def test_a_revoked_account_is_out_at_once(site: Site, browserless: Callable[..., TestClient]) -> None:
    ana = site.person("Ana")
    client = browserless("Ana")
    assert client.get("/api/session").status_code == 200
    accounts.deactivate(site.db, ana.id, accounts.OPERATOR)
    assert client.get("/api/session").status_code == 401
    assert client.get("/review").headers["location"] == "/login"


def test_the_browser_learns_neither_purpose_nor_names_nor_a_blind_record_s_suggestion(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    site.round(4, blind_every=2)
    answer = browserless("Ana").get("/api/next?count=4")
    blind = [item for item in answer.json()["items"] if item["blind"]]
    assert len(blind) == 2 and all(item["suggestion"] is None for item in blind)
    for word in ("purpose", "audit", "overlap", "priority", "Ana"):
        assert word not in answer.text


def test_errors_never_repeat_the_text_that_was_sent(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana")
    answer = browserless("Ana").post(
        "/api/comments", json={"assignment_id": "Frau Meier hat Fieber", "text": 1}
    )
    assert answer.status_code == 422
    assert "Meier" not in answer.text


def test_a_signed_round_answers_a_late_decision_with_what_to_do(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Ana"), site.person("Lea", Role.MANAGER)
    site.round(1, overlap=2)
    ana = browserless("Ana")
    held = ana.get("/api/next").json()["items"][0]
    rounds.reduce_overlap(site.db, 1, 1, by=accounts.OPERATOR)
    lea = browserless("Lea")
    other = lea.get("/api/next").json()["items"]
    assert other == []
    ana.post("/api/logout")
    other = lea.get("/api/next").json()["items"][0]
    body = {"idempotency_key": "12345678", "action": "accept", "value": "Prescription refill", "seconds": 1}
    sent = {**body, "assignment_id": other["assignment_id"], "expected_version": other["version"]}
    assert lea.post("/api/decisions", json=sent).status_code == 200
    rounds.sign(site.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    ana = browserless("Ana")
    sent = {**body, "assignment_id": held["assignment_id"], "expected_version": held["version"]}
    answer = ana.post("/api/decisions", json=sent)
    assert answer.status_code == 422
    assert "Nothing was saved" in answer.json()["next"]


def test_a_round_s_report_is_shown_with_its_styles_and_can_run_nothing(
    site: Site, browserless: Callable[..., TestClient]
) -> None:
    site.person("Lea", Role.MANAGER)
    site.round(1)
    lea = browserless("Lea")
    assert lea.get("/reports/1").status_code == 404
    report = site.folder.round(1).report
    report.parent.mkdir(parents=True)
    report.write_text("<style>h1 {color: red}</style><h1>Round 1</h1>", encoding="utf-8")
    answer = lea.get("/reports/1")
    assert answer.status_code == 200 and "Round 1" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.endswith("sandbox") and "script-src" not in policy and "default-src 'none'" in policy
    assert lea.get("/reports/2").status_code == 404
    assert lea.get("/reports/..%2f..%2fetc").status_code in (404, 422)
