"""What a test waits for on the screen of a page."""

import time
from typing import Any

from review_site import PASSWORD


def log_in(page: Any, url: str, name: str) -> None:
    page.goto(url + "/login")
    page.fill("#name", name)
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda now: "/login" not in now)


def until(page: Any, script: str, argument: Any = None) -> None:
    """Playwright's own `wait_for_function` evaluates strings inside the page, which our policy forbids."""
    end = time.monotonic() + 15
    while not page.evaluate(script, argument):
        assert time.monotonic() < end, script
        page.wait_for_timeout(20)


def ready(page: Any) -> None:
    page.wait_for_selector("body[data-state=open]")


def finished(page: Any) -> None:
    page.wait_for_selector("body[data-state=rest]")
    page.wait_for_selector("#saving[data-state=saved]")


def saved(page: Any) -> None:
    until(page, "document.querySelector('#saving').dataset.state === 'saved'")
