"""Two endpoints against one, and one that is killed: `python -m benchmarks.endpoints`.

The endpoints are scripted engines (real HTTP servers, processes of their own) that take 200 ms a call. Prints one JSON
object: records/s with one and two endpoints, their ratio, and what became of every record when one of two is killed.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from labeling.engines.fleet import Fleet
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.protocol import Engine
from labeling.prompts import Prompt, PromptTemplate, label_codes
from labeling.scoring import score_batch
from schemas.project import Label

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("alpha", "beta")
CALL_S = 0.2
RECORDS = 200


def start() -> tuple["subprocess.Popen[str]", str]:
    """A scripted engine in a process of its own, and its address."""
    command = [sys.executable, ROOT / "tests" / "scripted_engine.py", ",".join(LABELS), str(CALL_S)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def member(url: str) -> Engine:
    """One endpoint."""
    return LlamaServer(EngineConnection(url, timeout_s=10), digest="unknown")


def measure(engine: Engine, *, kill: Any = None) -> dict[str, Any]:
    """Records/s, and how many were scored; `kill` is called after a third of them."""
    codes = label_codes([Label(name=name) for name in LABELS], engine.first_token)
    prompt = Prompt(PromptTemplate("plain", ""), codes, (), "Which?\n\nText: ", "\nLabel:")
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if kill is not None and done == RECORDS // 3:
            kill()

    records = [(f"r{number}", f"text {number}") for number in range(RECORDS)]
    started = time.perf_counter()
    outcome = score_batch(engine, prompt, records, on_record=count)
    seconds = time.perf_counter() - started
    return {
        "records_per_s": round(RECORDS / seconds, 2),
        "scored": len(outcome.scored),
        "set_aside": len(outcome.set_aside),
    }


def main() -> None:
    """Runs the three cases side by side."""
    (first, first_url), (second, second_url) = start(), start()
    try:
        one = measure(member(first_url))
        two = measure(Fleet([member(first_url), member(second_url)]))
        killed = measure(Fleet([member(first_url), member(second_url)]), kill=second.kill)
    finally:
        first.kill()
        second.kill()
    answer = {
        "benchmark": "endpoints",
        "call_ms": CALL_S * 1000,
        "one": one,
        "two": two,
        "two_against_one": round(two["records_per_s"] / one["records_per_s"], 2),
        "one_of_two_killed": killed,
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
