"""A lead's work in the Prefect UI, in Chromium: start, schedule, sign; everything is killed while the gate waits."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployed, come_about, prefect_at, with_gold
from net_log import outside
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from small_projects import need
from test_gate import label_everything, person

from deployments.services import QUIET_ENVIRONMENT, answers
from labeling import paths
from labeling.database import rounds
from labeling.database.opening import project_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.storage import read_json
from schemas.review import Role

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = "/usr/bin/chromium"
PATIENCE_MS = 60_000
PROMPT = "prompts/letter.jinja"
PASSWORD = "a password of some length"


class Up:
    """`countersign up` of one project in a home of its own."""

    def __init__(self, home: Path, root: Path) -> None:
        self.home, self.root = home, root
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "countersign.main", "up", str(self.root), "--port", "8751", "--json"]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.url: str = told["prefect_url"]
        self.review_url: str = told["review_url"]

    def lose_power(self) -> None:
        """SIGKILL to `up`, the server, the runner, the review app and all they started."""
        parts = [read_json(path)["pid"] for path in (self.home / "services").glob("*.json")]
        self.process.kill()
        for pid in parts:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        come_about(lambda: not answers(f"{self.url}/api/health"))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


@pytest.fixture
def up(
    tmp_path: Path, lettered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Up, Deployed]]:
    home = tmp_path / "home"
    home.mkdir()
    if paths.models().is_dir():
        (home / "models").symlink_to(paths.models())
    monkeypatch.setenv("COUNTERSIGN_HOME", str(home))
    prompt = tmp_path / "project" / PROMPT
    prompt.parent.mkdir(parents=True)
    prompt.write_text("Text: {{ text }}\nLabel:", "utf-8")
    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5}, prompts={"files": [PROMPT]})
    name = with_gold(root, "lead")
    started = Up(home, root)
    with prefect_at(started.url):
        yield started, Deployed(name, root)
    started.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[[], tuple[Any, Path]]]:
    """Starts a Chromium that logs all it asks the network for; the log is complete once the browser is closed."""
    need(Path(CHROMIUM).exists(), "Chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    log = tmp_path / "net.json"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:

        def start() -> tuple[Any, Path]:
            made = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--disable-gpu", "--no-first-run", f"--log-net-log={log}", *quiet],
            )
            return made, log

        yield start


class Lead:
    """What a lead sees and does."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        page.set_default_timeout(PATIENCE_MS)

    def open_deployment(self, flow: str) -> None:
        self.page.goto(f"{self.url}/deployments")
        row = self.page.get_by_role("row").filter(has_text=flow)
        row.get_by_role("link").first.click()
        self.page.get_by_role("button", name="Run", exact=True).wait_for()

    def run(self, flow: str, number: int) -> None:
        """Starts a deployment from its form."""
        self.open_deployment(flow)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        self.page.get_by_text("0 takes the round that the project stands at.").wait_for()
        self.page.locator("input[type=number]").fill(str(number))
        self.submit(
            self.page, lambda: self.page.wait_for_url(re.compile(r"/deployments/deployment/[^/]+\?tab=Runs"))
        )

    def submit(self, form: Any, taken: Callable[[], None]) -> None:
        """Presses Submit, and once more where a busy server answered the first with an error."""
        form.get_by_role("button", name="Submit").click()
        try:
            taken()
        except PlaywrightTimeout:
            form.get_by_role("button", name="Submit").click()
            taken()

    def schedule(self, flow: str, cron: str) -> None:
        self.open_deployment(flow)
        self.page.get_by_role("button", name="Schedule", exact=True).click()
        form = self.page.locator(".p-modal")
        form.get_by_text("Cron", exact=True).click()
        form.get_by_text("Value", exact=True).wait_for()
        form.locator("input[type=text]").last.fill(cron)
        form.get_by_role("button", name="Save").click()
        form.wait_for(state="hidden")

    def open_gate(self, run: Any) -> Any:
        self.page.goto(f"{self.url}/runs/flow-run/{run}")
        self.page.get_by_role("button", name="Resume").click()
        form = self.page.locator(".p-modal")
        form.get_by_text("Verdict").wait_for()
        return form

    def sign(self, run: Any, verdict: str, name: str, note: str) -> None:
        form = self.open_gate(run)
        form.locator(".p-select-button__control").focus()
        self.page.keyboard.press("Space")
        option = self.page.get_by_role("option", name=verdict)
        option.click()
        option.wait_for(state="hidden")
        self.page.wait_for_timeout(1500)  # the form takes a choice over a moment after it is shown
        form.locator("textarea").nth(0).fill(name)
        form.locator("textarea").nth(1).fill(note)
        # The server holds the request back while it is busy, and the dialog closes when it answers.
        self.submit(form, lambda: form.wait_for(state="hidden"))

    def design(self, review_url: str) -> None:
        """Gives the first label a definition, in the review app."""
        self.page.goto(f"{review_url}/login")
        self.page.fill("#name", "lena")
        self.page.fill("#password", PASSWORD)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/review")
        self.page.goto(f"{review_url}/schema")
        self.page.locator("[name=definition]").first.fill("The first letter.")
        self.page.get_by_label("What changes, and why").fill("A definition")
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/schema?saved=true")

    def reads_in_artifact(self, key: str, told: str) -> None:
        """Waits for a text in the newest artifact under a key, as the Artifacts page shows it."""
        self.page.goto(f"{self.url}/artifacts")
        self.page.locator(f"a[href$='/artifacts/key/{key}']").click()
        self.page.wait_for_url(re.compile(r"/artifacts/key/"))
        self.page.locator("a[href*='/artifacts/artifact/']").first.click()
        self.page.wait_for_url(re.compile(r"/artifacts/artifact/"))
        self.page.locator(".artifact-data-view").filter(has_text=told).wait_for()


def newest_run(flow: str) -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    return runs[0].id if runs else None


def schedules_of(project: Deployed, flow: str) -> list[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"{flow}/{project.name}")
        return [one.schedule.cron for one in deployment.schedules]


def asked_again(project: Deployed, run: Any, before: Any) -> None:
    """Waits until the run is at its gate again after a form."""
    come_about(
        lambda: project.is_in(run, "PAUSED") and project.state(run).id != before.id,
        lambda: project.state(run),
    )


def lead_account(folder: ProjectFolder) -> None:
    project, _ = load_project(folder.root)
    with project_database(project, folder) as db:
        person(db, Role.MANAGER, "lena", PASSWORD)


@pytest.mark.campaign
def test_a_lead_starts_schedules_and_signs_in_the_ui_although_all_is_killed_while_the_gate_waits(
    up: tuple[Up, Deployed], browser: Callable[[], tuple[Any, Path]]
) -> None:
    running, project = up
    loaded, folder = load_project(project.root)
    chromium, log = browser()
    lead = Lead(chromium.new_page(viewport={"width": 1280, "height": 900}), running.url)

    lead.run("pipeline", 1)
    run = come_about(lambda: newest_run("pipeline"))
    project.await_kind(run, "PAUSED")
    lead.schedule("remind", "0 8 * * 1-5")
    assert schedules_of(project, "remind") == ["0 8 * * 1-5"]

    running.lose_power()
    running.start()
    assert running.url == lead.url
    assert schedules_of(project, "remind") == ["0 8 * * 1-5"], "a lead's schedule outlives a restart"
    assert newest_run("review") is None, "no second run at the same gate"

    lead_account(folder)
    before = project.await_kind(run, "PAUSED")
    lead.sign(run, "approve", "lena", "too early")
    asked_again(project, run, before)
    told = lead.open_gate(run).inner_text()
    assert "Not accepted" in told and "not finished" in told

    label_everything(project.root)
    lead.sign(run, "approve", "lena", "looked at twenty")
    project.await_kind(run, "COMPLETED")
    lead.page.goto(f"{lead.url}/v2/deployments")
    lead.page.get_by_text("pre_annotate").first.wait_for()
    chromium.close()

    with project_database(loaded, folder) as db:
        record = rounds.gate_record(db, "review", 1)
    assert record is not None
    assert (record.signed_by, record.note) == ("lena", "looked at twenty")
    assert (folder.release(1) / "manifest.json").is_file()
    assert outside(log) == []


@pytest.mark.campaign
def test_a_lead_designs_the_schema_sends_a_round_back_and_iterates_again_after_a_prompt_change(
    up: tuple[Up, Deployed], browser: Callable[[], tuple[Any, Path]]
) -> None:
    running, project = up
    loaded, folder = load_project(project.root)
    lead_account(folder)
    chromium, log = browser()
    lead = Lead(chromium.new_page(viewport={"width": 1280, "height": 900}), running.url)

    lead.design(running.review_url)
    assert load_project(project.root)[0].label_schema.labels[0].definition == "The first letter."
    lead.run("pipeline", 1)
    run = come_about(lambda: newest_run("pipeline"))
    before = project.await_kind(run, "PAUSED")
    lead.reads_in_artifact(f"{project.name}-gate", "records done")

    label_everything(project.root)
    lead.sign(run, "reject", "lena", "the guideline was not followed")
    asked_again(project, run, before)
    before = project.state(run)
    assert "Sent back by lena: the guideline was not followed" in lead.open_gate(run).inner_text()
    lead.sign(run, "approve", "nobody", "done")
    asked_again(project, run, before)
    assert "Not accepted" in lead.open_gate(run).inner_text(), "a name without an account signs nothing"
    label_everything(project.root)
    lead.sign(run, "approve", "lena", "looked at again")
    project.await_kind(run, "COMPLETED")
    lead.reads_in_artifact(f"{project.name}-round", "drafts right on the slice no loop sees")
    lead.reads_in_artifact(f"{project.name}-plan", "no other was there to try")

    (project.root / PROMPT).write_text("Which letter is it?\nText: {{ text }}\nLabel:", "utf-8")
    lead.run("iterate", 1)
    again = come_about(lambda: newest_run("iterate"))
    project.await_kind(again, "COMPLETED")
    lead.reads_in_artifact(f"{project.name}-plan", "(changed file) got")
    chromium.close()

    with project_database(loaded, folder) as db:
        events = rounds.gate_events(db, "review", 1)
    assert [event["event"] for event in events] == ["reject", "approve"]
    assert outside(log) == []


@pytest.mark.campaign
def test_the_log_of_the_browser_shows_what_would_leave(browser: Callable[[], tuple[Any, Path]]) -> None:
    chromium, log = browser()
    page = chromium.new_page()

    page.evaluate("fetch('https://api2.amplitude.example/2/httpapi').catch(() => 0)")
    chromium.close()

    assert any("api2.amplitude.example" in line for line in outside(log))
