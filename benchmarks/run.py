"""All benchmarks, one after the other: `make benchmarks`. Results go to docs/benchmarks/*.json and docs/benchmarks.md.

Rehearsals and the ladder need labelled data of your own: set COUNTERSIGN_BENCHMARK_DATA to a folder that holds
ag_news/test.parquet, sms_spam/all.parquet, banking77/train.parquet and banking77/test.parquet (columns record_id, text,
label); without it what needs data keeps its last result. What compares engines needs the real ones (`make engines`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.page import write_page
from deployments.engine_servers import built
from labeling.benchmarking import hardware

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks"
COMMANDS = {
    "engine_share": ["-m", "benchmarks.engine_share"],
    "bench": ["-m", "countersign.main", "bench", "--json"],
    "spinning": ["-m", "benchmarks.spinning"],
    "endpoints": ["-m", "benchmarks.endpoints"],
    "overhead": ["-m", "benchmarks.overhead"],
    "review_queue": ["-m", "benchmarks.review_queue"],
}
DATA = {
    "rehearse_ag_news": ("ag_news", "ag_news/test.parquet"),
    "rehearse_sms_spam": ("sms_spam", "sms_spam/all.parquet"),
}
LADDER = ("ag_news/test.parquet", "sms_spam/all.parquet", "banking77/train.parquet", "banking77/test.parquet")


def run(name: str, arguments: list[str]) -> None:
    """Runs one benchmark and stores what it printed."""
    print(f"{name} …", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {**json.loads(done.stdout), "commit": commit(), "machine": hardware()}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def commit() -> str:
    """The code that is measured; "+" marks changes outside docs/ that are not committed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", ":!docs") else "")


def main() -> None:
    """Runs everything that can be run here, then writes the page."""
    for name, arguments in COMMANDS.items():
        run(name, arguments)
    if built("ollama") and built("llama-server"):
        run("engine_limits", ["-m", "benchmarks.engine_limits"])
        run("engine_limits_bf16", ["-m", "benchmarks.engine_limits", "--model", "smollm2-135m-instruct-bf16"])
    data = os.environ.get("COUNTERSIGN_BENCHMARK_DATA")
    if data:
        for name, (dataset, file) in DATA.items():
            run(name, ["-m", "benchmarks.rehearsals", dataset, str(Path(data) / file)])
        run("cascade", ["-m", "benchmarks.cascade", str(Path(data) / "ag_news" / "test.parquet")])
        run("copilot", ["-m", "benchmarks.copilot", str(Path(data) / "ag_news" / "test.parquet")])
        run("ladder", ["-m", "benchmarks.ladder", *(str(Path(data) / file) for file in LADDER)])
        if built("ollama") and built("llama-server"):
            for name in ("usual_script", "engines_agree"):
                run(name, ["-m", f"benchmarks.{name}", str(Path(data) / "ag_news" / "test.parquet")])
    write_page(RESULTS, ROOT / "docs" / "benchmarks.md")


if __name__ == "__main__":
    main()
