"""docs/benchmarks.md from the stored results: `python -m benchmarks.page`."""

import json
from pathlib import Path
from typing import Any

HEAD = """# Measured figures

Every figure here was printed by a command in `benchmarks/` and is stored in `docs/benchmarks/`; this page is written
by `python -m benchmarks.page`, all of it anew by `make benchmarks`. Machine: 2 virtual cores (Intel Xeon, 2.1 GHz),
24 GiB, no GPU; its neighbours make speeds vary by about a fifth from run to run.
"""
TITLES = {
    "rehearse_ag_news": "Rehearsal: AG News, first 2,000 records (`python -m benchmarks.rehearsals ag_news FILE`)",
    "rehearse_sms_spam": "Rehearsal: SMS spam, first 2,000 records (`python -m benchmarks.rehearsals sms_spam FILE`)",
    "bench": "Labels an hour on this hardware (`countersign bench`)",
    "engine_share": "Share of the engine's limit, Prefect's share (`python -m benchmarks.engine_share`)",
    "engine_limits": "Each engine against its own limit (`python -m benchmarks.engine_limits`)",
    "overhead": "Pipeline overhead with an engine that costs nothing (`python -m benchmarks.overhead`)",
    "usual_script": "One-token labels against the usual script, AG News (`python -m benchmarks.usual_script FILE`)",
    "engines_agree": "The same records through all engines (`python -m benchmarks.engines_agree`)",
    "endpoints": "Two endpoints against one, and one killed (`python -m benchmarks.endpoints`)",
    "spinning": "The embedded engine beside a busy neighbour (`python -m benchmarks.spinning`)",
    "review_queue": "Review queue, decide and next (`python -m benchmarks.review_queue`)",
}


def rehearsal(result: dict[str, Any]) -> list[str]:
    """A rehearsal as a table a person can read."""
    lines = [
        "| round | drafts right on the slice no loop sees | n | AUROC of the confidence | decisions by people |"
    ]
    lines.append("|---|---|---|---|---|")
    for entry in result["rounds"]:
        accuracy, auroc = entry["accuracy"], entry["calibrated"]["auroc"]
        shown = f"{accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})"
        lines.append(
            f"| {entry['round']} | {shown} | {accuracy['n']} | "
            f"{'undefined' if auroc is None else f'{auroc:.3f}'} | {entry['human_labels']} |"
        )
    gain = result["rounds"][-1]["gain"]
    if gain is not None:
        sure = gain["low"] > 0 or gain["high"] < 0
        lines += [
            "",
            f"Gain of the last round: {gain['value']:+.1%} ({gain['low']:+.1%} to {gain['high']:+.1%}, paired): "
            + ("more than chance." if sure else "could be chance."),
        ]
    lines += [
        "",
        f"- {result['settled']} of {result['records']} records settled and released, error {result['final_error']:.2%} "
        "against the truth column",
        f"- valid suggestions: {result['valid_suggestion_share']:.0%}; suggestions shown that needed one key only: "
        f"{result['accepted_as_suggested_share']:.0%}; accepted without a person: 0",
        f"- {result['suggestions_per_s']} drafts/s, {result['wall_s']:.0f} s in all; findings: {result['findings']}",
        f"- {result['model']} on {result['engine']}, seed {result['seed']}",
    ]
    return lines


def write_page(results: Path, page: Path) -> None:
    """Writes the page from whatever results there are."""
    lines = [HEAD]
    for name, title in TITLES.items():
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text("utf-8"))
        body = (
            rehearsal(result)
            if name.startswith("rehearse")
            else ["```json", json.dumps(result, indent=2), "```"]
        )
        lines += [f"## {title}", "", *body, ""]
    page.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    write_page(root / "docs" / "benchmarks", root / "docs" / "benchmarks.md")
