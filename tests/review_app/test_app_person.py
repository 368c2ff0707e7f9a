"""A person who only reads the screen: they know what is written there, and have a keyboard and no mouse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from review_site import Server, Site
from screen import finished, log_in, ready, until

from labeling.database import chain, queue, rounds
from schemas.review import Role, SignOff

RECORDS = 20
MESSAGES = (
    ("Could I move my appointment on Thursday to next week?", "Appointment"),
    ("I need a prescription refill for my blood pressure pills.", "Prescription refill"),
    ("Have my test results come in?", "Test results"),
    ("There is a mistake in the billing of my last visit.", "Billing"),
)


class Person:
    """Reads what is visible, presses keys, and knows their field: which label a text is about."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def press(self, key: str) -> None:
        self.page.keyboard.press({"↵": "Enter", "→": "ArrowRight", "←": "ArrowLeft"}.get(key, key))

    def reads(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).strip()

    def keys_on_screen(self, box: str) -> dict[str, str]:
        """What each visible button says, with the key drawn beside it."""
        keys = {}
        for button in self.page.locator(f"{box} button:visible").all():
            lines = [line.strip() for line in button.inner_text().splitlines() if line.strip()]
            if len(lines) >= 2:
                keys[lines[1]] = lines[0]
        return keys

    def keyboard_map(self) -> dict[str, str]:
        """What the map on ? says, by what each line does."""
        self.press("?")
        rows = self.page.locator("dialog[open] .keys > div").all()
        told = {row.locator("dd").inner_text(): row.locator("kbd").all_inner_texts() for row in rows}
        self.press("Escape")
        return {what: keys[0] if len(keys) == 1 else " ".join(keys) for what, keys in told.items()}

    def label_for(self, text: str) -> str:
        return next(label for message, label in MESSAGES if message == text)


def texts() -> tuple[str, ...]:
    return tuple(message for message, _ in MESSAGES)


def expected(site: Site) -> dict[str, Any]:
    return {row["record_id"]: row for row in queue.decisions_of_round(site.db, 1)}


def test_a_person_gives_every_record_one_label(site: Site, page: Any, desk: Callable[..., Any]) -> None:
    site.person("Ana")
    site.round(RECORDS, texts=texts())
    desk(site)
    ana = Person(page)
    for _ in range(RECORDS):
        ready(page)
        wanted = ana.label_for(ana.reads("#text"))
        if wanted in ana.reads("#suggestion"):
            ana.press(ana.keys_on_screen(".actions")["Accept"])
        else:
            ana.press(ana.keys_on_screen("#labels")[wanted])
    finished(page)
    assert f"{RECORDS} records" in ana.reads("#rest")
    rows = expected(site)
    assert [rows[f"r{i}"]["value"] for i in range(RECORDS)] == [MESSAGES[i % 4][1] for i in range(RECORDS)]
    assert sum(row["action"] == "accept" for row in rows.values()) == RECORDS // 4


def test_a_person_gives_every_record_its_labels(tmp_path: Path, page: Any, desk: Callable[..., Any]) -> None:
    site = Site(tmp_path, "multilabel")
    site.person("Ana")
    site.round(RECORDS, texts=texts())
    desk(site)
    ana = Person(page)
    for _ in range(RECORDS):
        ready(page)
        wanted = {ana.label_for(ana.reads("#text"))}
        keys = ana.keys_on_screen("#labels")
        for button in page.locator("#labels button[aria-pressed=true]").all():
            name = button.locator(".label-name").inner_text()
            if name not in wanted:
                ana.press(keys[name])
            wanted.discard(name)
        for name in wanted:
            ana.press(keys[name])
        ana.press(ana.keys_on_screen(".actions")["Save"])
    finished(page)
    rows = expected(site)
    assert [rows[f"r{i}"]["value"] for i in range(RECORDS)] == [[MESSAGES[i % 4][1]] for i in range(RECORDS)]
    site.db.close()


def test_a_person_marks_a_span_in_every_record(tmp_path: Path, page: Any, desk: Callable[..., Any]) -> None:
    words = ("Thursday", "pills", "results", "visit")
    site = Site(tmp_path, "entities")
    site.person("Ana")
    site.round(RECORDS, texts=texts(), suggestion=None)
    desk(site)
    ana = Person(page)
    ready(page)
    how = ana.keyboard_map()
    right = how["Move by word"].split()[-1]
    for number in range(RECORDS):
        ready(page)
        until(page, "wanted => document.getElementById('text').textContent === wanted", texts()[number % 4])
        for _ in range(30):
            if ana.reads("#text .chosen") == words[number % 4]:
                break
            ana.press(right)
        ana.press(ana.keys_on_screen("#labels")[ana.label_for(texts()[number % 4])])
        page.wait_for_selector("#text .span")
        ana.press(ana.keys_on_screen(".actions")["Save"])
        if number < RECORDS - 1:
            until(
                page,
                "wanted => document.getElementById('text').textContent === wanted",
                texts()[(number + 1) % 4],
            )
    finished(page)
    rows = expected(site)
    for i in range(RECORDS):
        ((span),) = rows[f"r{i}"]["value"]
        assert (span["quote"], span["label"]) == (words[i % 4], MESSAGES[i % 4][1])
    site.db.close()


def test_a_person_writes_and_scores_every_pair(tmp_path: Path, page: Any, desk: Callable[..., Any]) -> None:
    site = Site(tmp_path, "pairs", labels=())
    site.person("Ana")
    site.round(RECORDS, texts=texts())
    desk(site)
    ana = Person(page)
    ready(page)
    how = ana.keyboard_map()
    write, save = how["Write (Escape leaves the text)"], how["Accept the suggestion, or save what you made"]
    for number in range(RECORDS):
        ready(page)
        source = texts()[number % 4]
        until(page, "wanted => document.getElementById('text').textContent === wanted", source)
        if number % 4 == 1:
            ana.press(write)
            ana.press("Tab")
            ana.press("Tab")
            ana.press("Control+A")
            page.keyboard.type(f"The patient writes: {source}")
            ana.press("Escape")
            assert page.locator("#text .support").count() == 1
        ana.press("4")
        ana.press("5")
        assert page.locator(".rubric [aria-pressed=true]").all_inner_texts() == ["4", "5"]
        ana.press(save)
        if number < RECORDS - 1:
            until(
                page,
                "wanted => document.getElementById('text').textContent === wanted",
                texts()[(number + 1) % 4],
            )
    finished(page)
    rows = expected(site)
    assert {row["details"] for row in rows.values()} == {'{"rubric":{"faithfulness":4,"usefulness":5}}'}
    assert [rows[f"r{i}"]["action"] for i in range(4)] == ["accept", "correct", "accept", "accept"]
    assert rows["r1"]["value"]["output"].endswith(MESSAGES[1][0])
    site.db.close()


def test_two_annotators_and_an_adjudicator_finish_a_round(
    site: Site, chromium: Any, serve: Callable[[FastAPI], Server]
) -> None:
    for name, role in (
        ("Ana", Role.ANNOTATOR),
        ("Bob", Role.ANNOTATOR),
        ("Rea", Role.REVIEWER),
        ("Lea", Role.MANAGER),
    ):
        site.person(name, role)
    site.round(8, overlap=2, texts=texts(), suggestion=None)
    server = serve(site.app(requests_per_s=10_000, logins_per_s=100))
    contexts = []

    def sits_down(name: str, path: str) -> Person:
        contexts.append(
            chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        log_in(page, server.url, name)
        page.goto(server.url + path)
        return Person(page)

    ana, bob = sits_down("Ana", "/review"), sits_down("Bob", "/review")
    for _ in range(8):
        for who, slip in ((ana, ""), (bob, "Test results")):
            ready(who.page)
            wanted = who.label_for(who.reads("#text"))
            # Bob takes refills for results.
            choice = slip if slip and wanted == "Prescription refill" else wanted
            who.press(who.keys_on_screen("#labels")[choice])
    for who in (ana, bob):
        finished(who.page)
        assert "8 records" in who.reads("#rest")
    assert rounds.missing(site.db, 1) == []
    rounds.sign(site.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    rounds.start_adjudication(
        site.db, 1, dict.fromkeys(("r0", "r1", "r5"), "Annotators labelled this record differently.")
    )

    rea = sits_down("Rea", "/adjudication")
    for left in (3, 2, 1):
        until(rea.page, f"document.querySelector('#open-count').textContent === '{left} open'")
        wanted = rea.label_for(rea.reads("#dispute .text"))
        cards = {
            line: card.locator("kbd").inner_text()
            for card in rea.page.locator("button.answer").all()
            for line in [card.locator(".chip").first.inner_text()]
        }
        assert len(cards) == (1 if left == 1 else 2)  # the furthest apart came first
        assert "Ana" not in rea.reads("#dispute") and "Bob" not in rea.reads("#dispute")
        rea.press(cards[wanted])
    rea.page.wait_for_selector("text=No dispute is open")
    settled = {
        row["record_id"]: row["value"]
        for row in queue.decisions_of_round(site.db, 1)
        if row["purpose"] == "recheck"
    }
    assert settled == {"r0": "Appointment", "r1": "Prescription refill", "r5": "Prescription refill"}
    rounds.close_round(site.db, 1)
    assert chain.verify_chain(site.db) == []
    for context in contexts:
        context.close()


@pytest.mark.parametrize("task", ["classification", "multilabel", "entities", "pairs"])
def test_an_adjudicator_makes_an_answer_that_nobody_gave(
    tmp_path: Path, page: Any, desk: Callable[..., Any], task: str
) -> None:
    site = Site(tmp_path, task)
    people = [site.person("Ana"), site.person("Bob")]
    site.person("Rea", Role.REVIEWER), site.person("Lea", Role.MANAGER)
    text = "pills and a bill"
    pair = {"instruction": "Sum up.", "input": "", "output": "About pills."}
    values: dict[str, list[Any]] = {
        "classification": ["Appointment", "Billing"],
        "multilabel": [["Billing"], ["Appointment", "Billing"]],
        "entities": [
            [{"start": 0, "end": 5, "label": "Billing", "quote": "pills"}],
            [{"start": 12, "end": 16, "label": "Billing", "quote": "bill"}],
        ],
        "pairs": [pair, {**pair, "output": "About bills."}],
    }
    site.round(1, overlap=2, texts=(text,), suggestion=None)
    for person, value in zip(people, values[task], strict=True):
        (held,) = queue.prefetch(site.db, person.id, count=1)
        sent = queue.DecisionIn(
            assignment_id=held.assignment_id,
            idempotency_key=f"{person.id}-key-0001",
            expected_version=0,
            action="correct",
            value=value,
            seconds=1,
        )
        queue.decide(site.db, person.id, sent, check_value=lambda value, text: None)
    rounds.sign(site.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    rounds.start_adjudication(site.db, 1, {"r0": "Two answers."})
    desk(site, "Rea", "/adjudication")
    page.wait_for_selector("button.answer")
    differing = {"classification": 0, "multilabel": 1, "entities": 2, "pairs": 1}
    assert page.locator(".cards .differs").count() == differing[task]
    page.keyboard.press("e")
    page.wait_for_selector("#compose:not([hidden])")
    if task == "pairs":
        page.keyboard.press("e")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type("About both.")
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
    elif task == "entities":
        page.keyboard.press("3")
        page.keyboard.press("Enter")
    else:
        page.keyboard.press("3")
        if task == "multilabel":
            page.keyboard.press("Enter")
    page.wait_for_selector("text=No dispute is open")
    (row,) = [row for row in queue.decisions_of_round(site.db, 1) if row["purpose"] == "recheck"]
    # It starts from one of the two answers, whichever comes first: their order tells nothing.
    assert row["value"] not in values[task]
    assert ("About both." if task == "pairs" else "Test results") in str(row["value"])
    site.db.close()
