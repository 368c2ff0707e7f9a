"""In Chromium: what a person who only reads the screen can do, by keyboard alone unless a test says mouse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from report_figures import full_report
from review_site import Server, Site
from screen import finished, log_in, ready, saved, until

from labeling.database import accounts, chain, pools, queue, rounds
from labeling.report import render_report
from schemas.review import Role, SignOff

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    '"><svg onload=window.hacked=1>',
    "{{ 7 * 7 }} ${7*7} javascript:window.hacked=1",
    "\u202eright to left override\u202c and \u0301combining",
    "</textarea></script><!--",
)
EMOJI = "Dr. Ng 👩‍⚕️ gave Zoé́ 20 mg naïve 🇨🇭 pills"
HEBREW = "שלום דוקטור כהן, צריך מרשם"


def values(site: Site) -> list[Any]:
    return [row["value"] for row in queue.decisions_of_round(site.db, 1)]


def test_a_person_labels_twenty_records_by_keyboard_and_reads_thank_you(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(20, blind_every=5)
    desk(site)
    ready(page)
    until(page, "document.querySelector('#count').textContent.startsWith('0 of 20')")
    for _ in range(20):
        page.wait_for_selector("body[data-state=open]")
        if "without a suggestion" in page.inner_text("#suggestion"):
            page.keyboard.press("Enter")  # nothing to accept: says so, saves nothing
            page.keyboard.press("4")
        else:
            assert "72 % likely right" in page.inner_text("#suggestion")
            page.keyboard.press("Enter")
    finished(page)
    assert "Thank you, Ana" in page.inner_text("#rest")
    assert "20 records" in page.inner_text("#rest")
    assert values(site).count("Prescription refill") == 16
    assert values(site).count("Billing") == 4
    assert chain.verify_chain(site.db) == []


def test_the_next_record_is_on_the_screen_within_a_tenth_of_a_second(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    texts = tuple(f"Message number {i}" for i in range(30))
    site.round(30, texts=texts)
    desk(site)
    ready(page)
    page.evaluate(
        """() => {
          window.times = [];
          let pressed = 0;
          addEventListener("keydown", () => (pressed = performance.now()), true);
          new MutationObserver(() => requestAnimationFrame(() => window.times.push(performance.now() - pressed)))
            .observe(document.getElementById("text"), { childList: true, characterData: true, subtree: true });
        }"""
    )
    for number in range(25):
        until(page, f"document.getElementById('text').textContent === 'Message number {number}'")
        page.keyboard.press("Enter")
        page.wait_for_timeout(30)
    times = sorted(page.evaluate("window.times"))
    assert len(times) >= 20
    assert times[len(times) // 2] <= 100


def test_undo_goes_back_after_a_reload_too(site: Site, page: Any, desk: Callable[..., Any]) -> None:
    site.person("Ana")
    site.round(4)
    desk(site)
    ready(page)
    first = page.inner_text("#text")
    page.keyboard.press("2")
    page.keyboard.press("3")
    page.wait_for_selector("#toast:not([hidden])")
    saved(page)
    page.reload()
    ready(page)
    for value in ("Test results", "Prescription refill"):
        page.keyboard.press("u")
        until(page, f"document.querySelector('#said-before').textContent.includes({value!r})")
    assert page.inner_text("#text") == first
    page.keyboard.press("4")
    page.wait_for_selector("#toast:has-text('Billing saved')")
    assert values(site) == ["Billing"]


def test_looking_back_and_choosing_again_changes_the_answer(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(3)
    desk(site)
    ready(page)
    page.keyboard.press("2")
    page.keyboard.press("[")
    page.wait_for_selector("body[data-state=said]")
    assert "You decided: Prescription refill" in page.inner_text("#said-before")
    page.keyboard.press("1")
    page.wait_for_selector("body[data-state=open]")
    saved(page)
    assert values(site) == ["Appointment"]
    page.keyboard.press("Shift+Digit3")
    page.wait_for_selector("body[data-state=said]")
    page.keyboard.press("]")
    page.wait_for_selector("body[data-state=open]")
    saved(page)
    assert values(site) == ["Appointment", "Test results"]


def test_rejecting_and_skipping_ask_for_a_reason(site: Site, page: Any, desk: Callable[..., Any]) -> None:
    site.person("Ana"), site.person("Bob")
    site.round(3)
    desk(site)
    ready(page)
    page.keyboard.press("x")
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    page.keyboard.type("Two requests in one.")
    page.keyboard.press("Enter")
    page.keyboard.press("s")
    page.keyboard.press("1")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    finished(page)
    rows = queue.decisions_of_round(site.db, 1)
    assert [(row["action"], row["comment"], row["not_sure"]) for row in rows] == [
        ("reject", "Two requests in one.", False),
        ("skip", "Not my field", False),
        ("accept", None, True),
    ]


def test_a_comment_and_a_flag_are_saved_and_shown(site: Site, page: Any, desk: Callable[..., Any]) -> None:
    site.person("Ana")
    site.round(2)
    desk(site)
    ready(page)
    page.keyboard.press("f")
    page.wait_for_selector("#flag[aria-pressed=true]")
    page.keyboard.press("c")
    page.keyboard.type("<b>Hm</b>")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#comment-list').textContent === '<b>Hm</b>'")
    page.reload()
    ready(page)
    assert page.get_attribute("#flag", "aria-pressed") == "true"


def test_the_keyboard_map_opens_and_the_focus_comes_back(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(2)
    desk(site)
    ready(page)
    page.keyboard.press("?")
    assert "Keyboard map" in page.inner_text("dialog[open]")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.id === 'text'")
    page.click("#labels [data-label=Billing]")
    page.wait_for_selector("#toast:has-text('Billing saved')")
    until(page, "document.activeElement.id === 'text'")


def test_answers_given_without_the_server_are_kept_and_saved_later(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(5)
    server = desk(site)
    ready(page)
    page.keyboard.press("1")
    saved(page)
    server.stop()
    page.keyboard.press("2")
    page.keyboard.press("3")
    until(page, "document.querySelector('#saving-words').textContent === 'Offline: 2 waiting'")
    assert values(site) == ["Appointment"]
    server.start()
    saved(page)
    assert values(site) == ["Appointment", "Prescription refill", "Test results"]


def test_two_windows_of_one_person_show_both_answers_in_a_conflict(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(2)
    server = desk(site)
    ready(page)
    other = page.context.new_page()
    other.goto(server.url + "/review")
    ready(other)
    page.keyboard.press("1")
    saved(page)
    other.keyboard.press("4")
    other.wait_for_selector("#conflict-dialog[open]")
    assert other.inner_text("#conflict-sent") == "Billing"
    assert other.inner_text("#conflict-stored") == "Appointment"
    other.keyboard.press("Escape")
    assert values(site) == ["Appointment"]


def test_a_session_that_ended_keeps_the_answers_until_the_next_login(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    ana = site.person("Ana")
    site.round(3)
    server = desk(site)
    ready(page)
    page.context.clear_cookies()
    page.keyboard.press("4")
    page.wait_for_selector("#login-dialog[open]")
    assert "One answer is kept" in page.inner_text("#login-why")
    log_in(page, server.url, "Ana")
    ready(page)
    page.wait_for_selector("#toast:has-text('Billing saved')")
    assert values(site) == ["Billing"]
    assert ana.id


def test_answers_of_a_page_whose_session_another_window_replaced_are_kept(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(3)
    server = desk(site)
    ready(page)
    page.context.clear_cookies()
    other = page.context.new_page()
    log_in(other, server.url, "Ana")
    page.keyboard.press("4")
    page.wait_for_selector("#login-dialog[open]")
    page.click("#login-dialog a")
    ready(page)
    page.wait_for_selector("#toast:has-text('Billing saved')")
    assert values(site) == ["Billing"]


def test_hostile_texts_are_shown_as_they_are_and_run_nowhere(
    tmp_path: Path, page: Any, desk: Callable[..., Any]
) -> None:
    site = Site(
        tmp_path, labels=("<script>window.hacked = 1</script>", '"onmouseover="window.hacked=1', "Other")
    )
    site.person("Ana")
    site.round(len(HOSTILE), texts=HOSTILE, suggestion="<script>window.hacked = 1</script>")
    server = desk(site)
    for text in HOSTILE:
        ready(page)
        until(page, "wanted => document.getElementById('text').textContent === wanted", text)
        page.keyboard.press("Enter")
    finished(page)
    page.goto(server.url + "/history")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".prose script, .excerpt script").count() == 0
    site.db.close()


def test_a_search_box_finds_labels_above_nine(tmp_path: Path, page: Any, desk: Callable[..., Any]) -> None:
    site = Site(tmp_path, labels=tuple(f"Label {number:02d}" for number in range(14)))
    site.person("Ana")
    site.round(2, suggestion=None)
    desk(site)
    ready(page)
    page.keyboard.press("/")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    page.wait_for_selector("#toast:has-text('Label 12 saved')")
    page.keyboard.press("9")
    finished(page)
    assert values(site) == ["Label 12", "Label 08"]
    site.db.close()


def test_several_labels_are_switched_by_number_and_saved_by_enter(
    tmp_path: Path, page: Any, desk: Callable[..., Any]
) -> None:
    site = Site(tmp_path, "multilabel")
    site.person("Ana")
    site.round(4)
    desk(site)
    ready(page)
    for number in range(4):
        page.wait_for_selector("body[data-state=open]")
        if number == 0:
            page.keyboard.press("4")
            page.keyboard.press("Enter")
        elif number == 1:
            page.keyboard.press("0")
        else:
            page.keyboard.press("Enter")
    finished(page)
    rows = queue.decisions_of_round(site.db, 1)
    assert [(row["action"], row["value"]) for row in rows][:3] == [
        ("correct", ["Billing", "Prescription refill"]),
        ("correct", []),
        ("accept", ["Prescription refill"]),
    ]
    assert len(rows) == 4
    site.db.close()


def test_spans_are_made_extended_and_removed_by_keyboard_exact_to_the_code_point(
    tmp_path: Path, page: Any, desk: Callable[..., Any]
) -> None:
    site = Site(tmp_path, "entities")
    site.person("Ana")
    site.round(3, texts=(EMOJI, HEBREW, "a plain text"), suggestion=None)
    desk(site)
    ready(page)
    words = page.evaluate(
        "async text => (await import('/static/editors/entities.js')).tokens(Array.from(text))", EMOJI
    )
    assert ["".join(list(EMOJI)[start:end]) for start, end in words][:4] == ["Dr", ".", "Ng", "👩‍⚕️"]
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("1")  # Ng 👩‍⚕️
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("2")  # Zoé́, letters with combining marks
    page.keyboard.press("Enter")
    ready(page)
    until(page, "wanted => document.getElementById('text').textContent === wanted", HEBREW)
    page.keyboard.press("ArrowLeft")  # goes on in right-to-left text
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('text').textContent === 'a plain text'")
    page.keyboard.press("4")
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    finished(page)
    first, second, third = values(site)
    assert [(span["quote"], span["label"]) for span in first] == [
        ("Ng 👩‍⚕️", "Appointment"),
        (EMOJI.split()[4], "Prescription refill"),
    ]
    assert [(span["quote"], span["label"]) for span in second] == [("דוקטור", "Test results")]
    assert third == []
    site.db.close()


def test_what_speaks_for_a_suggestion_is_on_the_screen(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    alike = tuple({"text": "A refill of my pills, please. " * 6, "label": "Refill"} for _ in range(3))
    site.round(2, evidence=alike)
    desk(site)
    ready(page)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.wait_for_selector("#similar .similar:nth-child(3)")
    lowest = page.locator("#similar").bounding_box()
    assert lowest["y"] + lowest["height"] <= page.locator("footer.bar").bounding_box()["y"]


def test_spans_by_mouse_cover_whole_characters(tmp_path: Path, page: Any, desk: Callable[..., Any]) -> None:
    site = Site(tmp_path, "entities")
    site.person("Ana")
    site.round(1, texts=(EMOJI,), suggestion=None)
    desk(site)
    ready(page)
    box = page.evaluate(
        """() => {
          const walker = document.createTreeWalker(document.getElementById("text"), NodeFilter.SHOW_TEXT);
          let seen = 0;
          const at = (offset) => {
            walker.currentNode = walker.root;
            seen = 0;
            while (walker.nextNode()) {
              const node = walker.currentNode;
              if (offset < seen + node.data.length) {
                const range = document.createRange();
                range.setStart(node, offset - seen);
                range.setEnd(node, offset - seen + 1);
                return range.getBoundingClientRect();
              }
              seen += node.data.length;
            }
          };
          const text = document.getElementById("text").textContent;
          const from = at(text.indexOf("20"));
          const to = at(text.indexOf("mg") + 1);
          return [from.left + 1, from.top + from.height / 2, to.right - 1];
        }"""
    )
    page.mouse.move(box[0], box[1])
    page.mouse.down()
    page.mouse.move(box[2], box[1], steps=5)
    page.mouse.up()
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    finished(page)
    ((span,),) = values(site)
    assert (span["quote"], span["label"]) == ("20 mg", "Billing")
    assert EMOJI[span["start"] : span["end"]] == "20 mg"
    site.db.close()


@pytest.mark.parametrize("text", [EMOJI, HEBREW, "a\U0001f600b\u0301c", ""])
def test_utf16_offsets_become_code_points(site: Site, page: Any, desk: Callable[..., Any], text: str) -> None:
    site.person("Ana")
    desk(site)
    for at in range(len(text) + 1):
        utf16 = len(text[:at].encode("utf-16-le")) // 2
        got = page.evaluate(
            "async ([text, at]) => (await import('/static/code_points.js')).codePointOffset(text, at)",
            [text, utf16],
        )
        assert got == at


def test_pairs_are_written_by_keyboard_with_their_changes_shown(
    tmp_path: Path, page: Any, desk: Callable[..., Any]
) -> None:
    site = Site(tmp_path, "pairs", labels=())
    site.person("Ana")
    site.round(3)
    desk(site)
    for number in range(3):
        ready(page)
        if number == 0:
            page.keyboard.press("e")
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
            page.keyboard.press("Control+A")
            page.keyboard.type("A request for\nmore pills.")
            page.keyboard.press("Escape")
            page.keyboard.press("d")
            assert page.locator(".changes ins").first.is_visible()
            page.keyboard.press("Enter")
        else:
            page.keyboard.press("Enter")
    finished(page)
    rows = queue.decisions_of_round(site.db, 1)
    assert rows[0]["value"]["output"] == "A request for\nmore pills."
    assert [row["action"] for row in rows] == ["correct"] + ["accept"] * 2
    site.db.close()


def disputed(site: Site) -> None:
    ana, bob = site.person("Ana"), site.person("Bob")
    site.person("Rea", Role.REVIEWER), site.person("Lea", Role.MANAGER)
    site.round(3, overlap=2)
    for person, value in ((ana, "Prescription refill"), (bob, "Billing")):
        for held in queue.prefetch(site.db, person.id, count=3):
            queue.decide(
                site.db,
                person.id,
                queue.DecisionIn(
                    assignment_id=held.assignment_id,
                    idempotency_key=f"{person.id}-{held.record_id}-key",
                    expected_version=held.version,
                    action="correct",
                    value=value,
                    seconds=3,
                    comment="Asks about money." if value == "Billing" else "",
                ),
                check_value=lambda value, text: None,
            )
    rounds.sign(site.db, 1, SignOff(verdict="approve", signed_by="Lea"), {})
    rounds.start_adjudication(site.db, 1, {f"r{i}": "Two annotators disagree." for i in range(3)})


def test_an_adjudicator_settles_disputes_with_one_key_each(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    disputed(site)
    desk(site, "Rea", "/adjudication")
    for left in (3, 2, 1):
        until(page, f"document.querySelector('#open-count').textContent === '{left} open'")
        page.keyboard.press("1")
    page.wait_for_selector("text=No dispute is open")
    page.keyboard.press("u")
    until(page, "document.querySelector('#open-count').textContent === '1 open'")
    page.keyboard.press("2")
    page.wait_for_selector("text=No dispute is open")
    settled = [row["value"] for row in queue.decisions_of_round(site.db, 1) if row["purpose"] == "recheck"]
    assert settled == ["Prescription refill", "Prescription refill", "Billing"]
    rounds.close_round(site.db, 1)


def test_a_lead_invites_somebody_who_comes_in_by_the_link(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Lea", Role.MANAGER)
    desk(site, "Lea", "/people")
    page.fill("#display_name", "Noor")
    page.select_option("#role", "reviewer")
    page.click("text=Make a link")
    link = page.input_value("#link")
    page.context.clear_cookies()
    page.goto(link)
    assert "Welcome, Noor" in page.inner_text("h1")
    page.fill("#name", "noor")
    page.fill("#password", "some long words here")
    page.keyboard.press("Enter")
    page.wait_for_url("**/review")
    found = accounts.account_by_name(site.db, "noor")
    assert found is not None and found.role is Role.REVIEWER


def test_a_record_is_found_opened_and_decided_by_keyboard(
    site: Site, page: Any, desk: Callable[..., Any]
) -> None:
    site.person("Ana")
    site.round(12)
    desk(site, path="/records")
    page.keyboard.press("?")
    assert "Next, previous record" in page.inner_text("#keys-dialog[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("thyroid")
    page.keyboard.press("Enter")
    page.wait_for_url("**/records?text=thyroid*")
    assert page.locator(".found li").count() == 3
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/records/*")
    page.keyboard.press("Enter")
    ready(page)
    assert "thyroid" in page.inner_text("#text")
    page.keyboard.press("3")
    page.wait_for_selector("#toast:has-text('Test results saved')")
    (row,) = queue.decisions_of_round(site.db, 1)
    assert row["record_id"] == "r7"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_accessibility_finding_or_scrolls_sideways(
    site: Site, chromium: Any, serve: Callable[[FastAPI], Server], scheme: str
) -> None:
    disputed(site)
    site.person("Root", Role.ADMIN)
    site.round(5, number=2, blind_every=2, confidence=0.95)
    nurses = pools.make_pool(site.db, "Nurses", site.person("Max", Role.MANAGER).id)
    assert nurses
    server = serve(site.app(local_user=True, requests_per_s=10_000, logins_per_s=100))
    context = chromium.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    visited = {None: ["/login", "/nothing"], "Rea": ["/review", "/adjudication", "/history", "/batch", "/me"]}
    visited |= {
        "Lea": [
            "/board",
            "/people",
            "/records",
            "/records?round=1",
            "/records?text=none",
            "/records/7",
            "/schema",
        ],
        "Root": ["/people"],
    }
    for name, paths in visited.items():
        context.clear_cookies()
        if name:
            log_in(page, server.url, name)
        for path in paths:
            page.goto(server.url + path)
            page.wait_for_load_state("networkidle")
            if name:
                page.keyboard.press("?")
                page.wait_for_selector("#keys-dialog[open]")
                page.keyboard.press("Escape")
            for width in (1280, 375) if scheme == "light" else (1280,):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
                look(page, f"{path} {width}")
    page.set_viewport_size({"width": 1280, "height": 800})
    context.clear_cookies()
    log_in(page, server.url, "Rea")
    page.goto(server.url + "/review")
    ready(page)
    for key in ("?", "x", "c"):
        page.keyboard.press(key)
        look(page, f"dialog {key}")
        page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.keyboard.press("[")
    page.wait_for_selector("body[data-state=said]")
    look(page, "looking back")
    page.goto(server.url + "/adjudication")
    page.wait_for_selector("button.answer")
    page.keyboard.press("e")
    page.wait_for_selector("#compose:not([hidden])")
    look(page, "another answer")
    page.goto(server.url + "/batch")
    page.wait_for_selector(".groups")
    page.keyboard.press("1")
    page.wait_for_selector(".batch-list")
    page.keyboard.press("Space")
    look(page, "a batch")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_has_no_serious_accessibility_finding_and_does_not_scroll_sideways(
    chromium: Any, scheme: str
) -> None:
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()
    # Not from the app, whose policy for reports lets no script run, axe neither.
    page.set_content(render_report(full_report()))
    for width in (1280, 820, 375):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        look(page, f"the report {width}")
    context.close()


def look(page: Any, what: str) -> None:
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    told = [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in serious]
    assert serious == [], (what, told)


@pytest.mark.parametrize("task", ["multilabel", "entities", "pairs"])
def test_the_other_editors_have_no_serious_accessibility_finding(
    tmp_path: Path, page: Any, desk: Callable[..., Any], task: str
) -> None:
    site = Site(tmp_path, task)
    site.person("Ana")
    site.round(3)
    desk(site)
    ready(page)
    look(page, task)
    site.db.close()
