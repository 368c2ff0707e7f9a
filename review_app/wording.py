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
