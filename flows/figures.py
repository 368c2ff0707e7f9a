"""A round's figures as Markdown: tables, and charts of block characters that every page can show."""

from collections.abc import Sequence
from typing import Any

BAR = 20


def bar(share: float) -> str:
    """A share in [0, 1] as a bar.

    >>> bar(0.5)
    '██████████░░░░░░░░░░'
    """
    filled = round(BAR * min(max(share, 0.0), 1.0))
    return "█" * filled + "░" * (BAR - filled)


def with_interval(figure: dict[str, Any]) -> str:
    """`82.5% (70.1% to 91.3%, n = 40)`, or that it is undefined."""
    if figure["value"] is None:
        return f"undefined (n = {figure['n']})"
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%}, n = {figure['n']})"


def round_text(title: str, figures: dict[str, Any], url: str | None) -> str:
    """What a lead looks at after quality assurance."""
    accuracy, auroc = figures["accuracy"], figures["calibrated"]["auroc"]["value"]
    lines = [
        f"### {title}: round {figures['round']}",
        "",
        "| figure | value | |",
        "|---|---|---|",
        f"| drafts right on the slice no loop sees | {with_interval(accuracy)} | {bar(accuracy['value'] or 0.0)} |",
        f"| AUROC of the confidence | {'undefined' if auroc is None else f'{auroc:.3f}'} | |",
        f"| decisions by people | {figures['human_labels']} | |",
        "",
        *reliability_chart(figures["reliability"]),
    ]
    if url:
        lines += ["", f"Review app: <{url}> · full report: <{url}/reports/{figures['round']}>"]
    return "\n".join(lines)


def reliability_chart(bins: Sequence[dict[str, Any]]) -> list[str]:
    """How often drafts of a stated confidence were right; equal bars mean that the confidence can be trusted."""
    if not bins:
        return ["The confidence cannot be held against outcomes yet: no judged draft has one."]
    rows = [
        f"| {entry['mean_confidence']:.0%} | {entry['right']['n']} | {bar(entry['mean_confidence'])} "
        f"| {bar(entry['right']['value'] or 0.0)} |"
        for entry in bins
    ]
    return ["| confidence | drafts | stated | right |", "|---|---|---|---|", *rows]
