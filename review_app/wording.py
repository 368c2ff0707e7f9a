"""Words people can use instead of numbers they cannot."""

from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from schemas.review import Action

# Raw HTML is escaped and pictures are off: a guideline is text, whoever wrote it.
_markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

STATES = {
    "sampling": "the setup sample is being labelled",
    "open": "open for labels",
    "signed": "signed",
    "adjudicating": "disputes are being settled",
    "closed": "closed",
}


def guideline_html(path: Path) -> str:
    """The guideline as HTML; empty when there is none yet."""
    try:
        return str(_markdown.render(path.read_text("utf-8")))
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def value_words(action: Action, value: Any) -> str:
    """A decision in a few words, as static/words.js says it."""
    if action in (Action.REJECT, Action.SKIP):
        return "Cannot be labelled" if action is Action.REJECT else "Skipped"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if not value:
            return "Nothing"
        if isinstance(value[0], str):
            return ", ".join(value)
        return f"{len(value)} span" + ("" if len(value) == 1 else "s")
    return str(value.get("instruction", ""))[:60] if isinstance(value, dict) else "No answer"


def value_lines(value: Any) -> list[tuple[str, str]]:
    """The parts of a value as (label, words), one a line; spans and pairs are told in full.

    >>> value_lines(["Billing", "Refill"]), value_lines([])
    ([('Billing', ''), ('Refill', '')], [('', 'nothing')])
    """
    if isinstance(value, str):
        return [(value, "")]
    if isinstance(value, list):
        if not value:
            return [("", "nothing")]
        return [(part, "") if isinstance(part, str) else (part["label"], part["quote"]) for part in value]
    if isinstance(value, dict):
        return [("", f"{field.capitalize()}: {words}") for field, words in value.items() if words]
    return []


def likely_words(confidence: float | None) -> str:
    """A confidence as static/words.js says it.

    >>> likely_words(0.718), likely_words(None)
    ('72 % likely right', 'how likely right: not yet known')
    """
    if confidence is None:
        return "how likely right: not yet known"
    return f"{min(99, max(1, round(confidence * 100)))} % likely right"
