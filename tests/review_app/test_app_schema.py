"""A lead changes labels and guideline in the browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from review_site import PASSWORD, Site

from labeling.project_file import load_project
from schemas.review import Role


def fields(site: Site, **changes: Any) -> dict[str, Any]:
    labels = list(site.labels)
    return {
        "instruction": "What does this message want?",
        "label": labels,
        "definition": [f"It is about {name.lower()}." for name in labels],
        "word": [""] * len(labels),
        "examples": [""] * len(labels),
        "guideline": "# Guideline\r\n\r\nRead all of it.\r\n",
        "seen": "0",
        **changes,
    }


def send(client: TestClient, form: dict[str, Any]) -> Any:
    return client.post("/schema", data={**form, "csrf": client.headers["X-CSRF-Token"]})


@pytest.fixture
def lead(site: Site, browserless: Callable[..., TestClient]) -> TestClient:
    site.person("Lea", Role.MANAGER)
    return browserless("Lea")


def test_what_is_saved_is_in_the_file_and_on_the_pages_at_once(site: Site, lead: TestClient) -> None:
    form = fields(site, label=[*site.labels, "Complaint"], note="Complaints came up in the sample.")
    for column in ("definition", "word", "examples"):
        form[column] = [*form[column], ""]

    assert send(lead, form).headers["location"] == "/schema?saved=true"

    assert load_project(site.folder.root)[0].label_schema.names == (*site.labels, "Complaint")
    page = lead.get("/schema").text
    assert "Complaints came up in the sample." in page and "Labels, version 2" in page
    assert "Complaint" in lead.get("/review").text
    difference = lead.get("/schema/versions/schema/2").text
    assert '<tr class="added">' in difference and "Complaint" in difference


def answered(client: TestClient, value: str) -> int:
    (item,) = client.get("/api/next").json()["items"]
    sent = {
        "assignment_id": item["assignment_id"],
        "idempotency_key": f"key-{value}-{item['version']:06d}",
        "expected_version": item["version"],
        "action": "correct",
        "value": value,
        "seconds": 1.0,
    }
    return int(client.post("/api/decisions", json=sent).status_code)


def test_a_label_added_in_the_browser_is_an_answer_at_once(
    site: Site, lead: TestClient, browserless: Callable[..., TestClient]
) -> None:
    form = fields(site, label=[*site.labels, "Complaint"])
    for column in ("definition", "word", "examples"):
        form[column] = [*form[column], ""]
    assert send(lead, form).headers["location"] == "/schema?saved=true"
    site.round()
    site.person("Ana")

    assert answered(browserless("Ana"), "Complaint") == 200


def test_what_another_process_or_an_editor_writes_is_served_without_a_restart(
    site: Site, lead: TestClient, browserless: Callable[..., TestClient]
) -> None:
    site.round()
    site.person("Ana")
    ana = browserless("Ana")
    file = site.folder.root / "project.yaml"
    before = file.read_text("utf-8")
    assert answered(ana, "Complaint") == 422

    file.write_text(before[: len(before) // 2] + "\n  : broken", "utf-8")
    assert site.labels[0] in ana.get("/review").text  # half written: what stood there is served on

    file.write_text(before.replace("name: Billing", "name: Complaint"), "utf-8")
    page = ana.get("/review").text
    assert "Complaint" in page and ">Billing<" not in page
    assert answered(ana, "Complaint") == 200


def test_a_refusal_keeps_what_was_typed_and_says_what_to_do(site: Site, lead: TestClient) -> None:
    form = fields(site, label=["Appointment", "appointment", "", ""], instruction="Only typed so far")

    answer = send(lead, form)

    assert answer.status_code == 422
    assert "read alike" in answer.text and "Only typed so far" in answer.text
    assert load_project(site.folder.root)[0].label_schema.names == tuple(site.labels)


@pytest.mark.parametrize("left_out", ["definition", "word", "examples"])
def test_a_form_that_was_not_sent_whole_saves_nothing(left_out: str, site: Site, lead: TestClient) -> None:
    before = (site.folder.root / "project.yaml").read_bytes()
    form = fields(site)
    del form[left_out]

    answer = send(lead, form)

    assert answer.status_code == 422 and "send its form whole" in answer.text
    assert (site.folder.root / "project.yaml").read_bytes() == before


def test_a_guideline_that_is_no_text_is_said_so(site: Site, lead: TestClient) -> None:
    file = site.folder.root / site.project.label_schema.guideline
    file.write_bytes(b"\xff\xfeg")

    for answer in (lead.get("/schema"), send(lead, fields(site))):
        assert answer.status_code == 422 and "not UTF-8" in answer.text
    assert file.read_bytes() == b"\xff\xfeg"


def test_a_lead_with_an_old_page_is_told(site: Site, lead: TestClient) -> None:
    send(lead, fields(site, instruction="First"))

    answer = send(lead, fields(site, instruction="Second"))

    assert answer.status_code == 422 and "newer version" in answer.text
    assert load_project(site.folder.root)[0].label_schema.instruction == "First"


def test_labels_that_decisions_were_given_with_keep_their_names(site: Site, lead: TestClient) -> None:
    site.round(2)
    item = lead.get("/api/next").json()["items"][0]
    decision = {
        "assignment_id": item["assignment_id"],
        "idempotency_key": "k" * 16,
        "expected_version": item["version"],
        "action": "accept",
        "value": item["suggestion"]["value"],
        "seconds": 1.0,
    }
    assert lead.post("/api/decisions", json=decision).status_code == 200

    answer = send(lead, fields(site, label=["A", "B", "C", "D"]))

    assert answer.status_code == 422 and "decisions (1)" in answer.text
    assert send(lead, fields(site, definition=["Clearer."] * 4)).status_code == 303


def test_a_version_that_does_not_exist_is_said_so(lead: TestClient) -> None:
    assert lead.get("/schema/versions/schema/9").status_code == 404
    assert lead.get("/schema/versions/other/1").status_code == 404


def test_a_lead_designs_the_schema_in_the_browser(
    tmp_path: Path, page: Any, serve: Callable[..., Any]
) -> None:
    site = Site(tmp_path)
    site.person("Lea", Role.MANAGER)
    server = serve(site.app())
    page.goto(server.url + "/login")
    page.fill("#name", "Lea")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/review")

    page.goto(server.url + "/schema")
    page.get_by_role("button", name="Add a label").click()
    page.keyboard.type("Complaint")  # the focus is in the new row
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("Somebody is not content.")
    page.fill("#guideline", "# Guideline\n\nComplaints come first.\n")
    page.get_by_label("What changes, and why").fill("Complaints")
    page.keyboard.press("Enter")
    page.wait_for_url("**/schema?saved=true")

    saved = load_project(site.folder.root)[0].label_schema
    assert saved.labels[-1].name == "Complaint" and saved.labels[-1].definition == "Somebody is not content."
    assert (site.folder.root / "guideline.md").read_text("utf-8") == "# Guideline\n\nComplaints come first.\n"
    page.get_by_role("link", name="Guideline, version 2").click()
    page.get_by_text("Complaints come first.").wait_for()
    site.db.close()
