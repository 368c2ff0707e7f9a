"""docs/benchmarks.md from the stored results: `python -m benchmarks.page`."""

import json
from pathlib import Path
from typing import Any

HEAD = """# Measured figures

Every figure here was printed by a command in `benchmarks/` and is stored in `docs/benchmarks/`; this page is written
by `python -m benchmarks.page`, all of it anew by `make benchmarks` but what needs the older Ollama. The machines were
virtual ones without a GPU, whose neighbours make speeds vary by a fifth and more from run to run; ratios are of figures
measured in turn in one run.

Three things about figures that look odd. The shares of engine_limits swing by 0.05 and more from turn to turn
(share_of_limit_by_turn), so that a second decimal means little. The engine in the process is held against llama-bench
on its own code (docs/decisions/0014). Ollama can be above 1: its limit is one prompt after the other, and its slots
compute several in one batch; its prompt cache in main memory is what deployments/ turns off (docs/decisions/0017).
engine_share labels short messages of 50 tokens, and most of its six labels are so unlikely for this model that each
record needs a second call.
"""
TITLES = {
    "rehearse_ag_news": "Rehearsal: AG News, first 2,000 records (`python -m benchmarks.rehearsals ag_news FILE`)",
    "rehearse_sms_spam": "Rehearsal: SMS spam, first 2,000 records (`python -m benchmarks.rehearsals sms_spam FILE`)",
    "bench": "Labels an hour on this hardware (`countersign bench`)",
    "engine_share": "Share of the engine's limit, Prefect's share (`python -m benchmarks.engine_share`)",
    "engine_limits": "Each engine against its own limit (`python -m benchmarks.engine_limits`)",
    "engine_limits_bf16": "The same with the weights as BF16 "
    "(`python -m benchmarks.engine_limits --model smollm2-135m-instruct-bf16`)",
    "overhead": "Pipeline overhead with an engine that costs nothing (`python -m benchmarks.overhead`)",
    "usual_script": "One-token labels against the usual script, AG News (`python -m benchmarks.usual_script FILE`)",
    "usual_script_ollama_0_24": "The same on Ollama 0.24 "
    "(`make engines OLLAMA=0.24.0`; `python -m benchmarks.usual_script FILE`)",
    "engines_agree": "The same records through all engines (`python -m benchmarks.engines_agree FILE`)",
    "endpoints": "Two endpoints against one, and one killed (`python -m benchmarks.endpoints`)",
    "spinning": "The embedded engine beside a busy neighbour (`python -m benchmarks.spinning`)",
    "ladder": "What each step adds, three data sets "
    "(`python -m benchmarks.ladder AG_NEWS_FILE SMS_FILE BANKING77_TRAIN BANKING77_TEST`)",
    "cascade": "What a cascade saves and costs, AG News, three rounds (`python -m benchmarks.cascade FILE`)",
    "copilot": "The co-pilot: how soon, how often right, AG News (`python -m benchmarks.copilot FILE`)",
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


def ladder(result: dict[str, Any]) -> list[str]:
    """Accuracy of each step on each data set, with what an earlier prototype had there."""
    sets = result["sets"]
    steps = list(dict.fromkeys(step for entry in sets.values() for step in entry["rows"]))
    lines = ["| step | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for step in steps:
        cells = [_rung(entry["rows"].get(step)) for entry in sets.values()]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    drawn = len(result["seeds"])
    lines += [
        "",
        "Share right with its Wilson 95 % interval and the number of evaluation records; in square brackets what the "
        "prototype before this project had on a sample of its own. Rows with a number of labels are means of "
        f"{drawn} draws of training records; the whole stack, which also needs the model's scores of those records, of "
        + ", ".join(f"{len(_stack_draws(entry))} ({name})" for name, entry in sets.items())
        + ".",
        "",
    ]
    for name, entry in sets.items():
        lines.append(
            f"- {name}: {entry['labels']} labels as {entry['codes']}, `{entry['prompt']}`; the most common label is "
            f"{entry['share_of_the_most_common_label']:.1%} of the sample; valid suggestions "
            f"{entry['valid_suggestion_share']:.0%} of {entry['suggestions']}, set aside {entry['set_aside']}; "
            f"exemplars from {entry['pool_records']} labelled records; {entry['wall_s']:.0f} s"
        )
    lines.append(
        f"- {result['model']} on {result['engine']}, vectors {result['vectors']}, seeds {result['seeds']}"
    )
    return lines


def _rung(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    target = "" if row["methods.md"] is None else f" [{row['methods.md']:.0%}]"
    return f"{row['accuracy']:.1%} ({row['low']:.0%} to {row['high']:.0%}, n = {row['n']}){target}"


def _stack_draws(entry: dict[str, Any]) -> list[float]:
    """Accuracies of the whole stack, one a draw."""
    return next((row["draws"] for step, row in entry["rows"].items() if step.startswith("whole stack")), [])


def body(name: str, result: dict[str, Any]) -> list[str]:
    """A result as a table where there is one for it, otherwise as it was printed."""
    if name.startswith("rehearse"):
        return rehearsal(result)
    if name == "ladder":
        return ladder(result)
    return ["```json", json.dumps(result, indent=2), "```"]


def write_page(results: Path, page: Path) -> None:
    """Writes the page from whatever results there are."""
    lines = [HEAD]
    for name, title in TITLES.items():
        path = results / f"{name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text("utf-8"))
        measured = (
            f"at commit {result.pop('commit')}" if "commit" in result else "before results named their commit"
        )
        if "machine" in result:
            measured += f" on {result.pop('machine')}"
        lines += [f"## {title}", "", f"Measured {measured}.", "", *body(name, result), ""]
    page.write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    write_page(root / "docs" / "benchmarks", root / "docs" / "benchmarks.md")
