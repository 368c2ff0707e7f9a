"""What the pipeline itself costs: `python -m benchmarks.overhead [--sizes 10000,100000,1000000] [--requests 6000]`.

Two measurements side by side in one run:

- in the process: an engine that answers at once behind `labeling.engines.protocol.Engine`, through everything that the
  pre-annotation does to a record (reading it, fitting the prompt, scoring, shards, suggestions). One process a size, so
  that its peak memory is its own. `records_per_core_s` counts CPU seconds of all threads: goal 20,000.
- over HTTP: the scripted engine of the tests, a real llama-server protocol on loopback, in another process: requests a
  second. A record costs two requests (tokenize, completion): goal 1,500.

`memory_ratio` is peak memory at the largest size over that at the smallest. Prints one JSON object.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.protocol import Engine, FirstToken, Identity, LabelCode, LabelScores, Tokens
from labeling.ingest import PART_ROWS
from labeling.paths import ProjectFolder
from labeling.project_file import parse_project
from labeling.prompts import Prompt, PromptTemplate
from labeling.record_store import records_table, stream_records
from labeling.score_store import register, score_missing
from labeling.scoring import score_batch
from labeling.suggesting import write_suggestions
from schemas import tables
from schemas.plan import Plan
from schemas.project import Project

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("alpha", "beta", "gamma", "delta")
GOAL_RECORDS, GOAL_REQUESTS = 20_000, 1_500
TEXT = (
    "A message of ordinary length, such as people write to a front desk, number {} of many; no answer needed."
)
PROJECT = f"""
name: overhead
schema:
  task: classification
  labels: [{", ".join(f"{{name: {label}}}" for label in LABELS)}]
sources: [{{path: records.csv}}]
embedding: {{kind: none}}
"""


class InstantEngine:
    """Answers at once: what is left is the pipeline's own work."""

    context = 2048
    counts = True
    measures_weights: bool = True
    control_marks: Sequence[str] = ()

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._prompt = tuple(range(60))
        self._replies = [
            LabelScores((-0.3 - shift, -1.9, -3.1 + shift, -4.0), 0.95, 60, 50, 0.0)
            for shift in (0.0, 0.1, 0.7)
        ]
        self._turn = 0

    def identity(self) -> Identity:
        return Identity("instant", "1", "instant", "0" * 64, "none", self.context, "none")

    def tokenize(self, text: str) -> Tokens:
        return Tokens(self._prompt, text)

    def first_token(self, text: str) -> FirstToken:
        return FirstToken(0, "", False)

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        self._turn += 1
        return self._replies[self._turn % 3]

    def prefill(self, prompt: Tokens, *, slot: int) -> tuple[int, int]:
        return len(prompt.ids), 0

    def warm(self, prefix: Tokens) -> None:
        """Nothing to warm."""

    def memory_mb(self) -> int | None:
        """Nothing is loaded."""
        return None

    def close(self) -> None:
        """Nothing to free."""


def write_records(project: Project, folder: ProjectFolder, count: int) -> None:
    """The records table as an ingest leaves it."""
    table = records_table(project, folder)
    for start in range(0, count, PART_ROWS):
        numbers = range(start, min(start + PART_ROWS, count))
        texts = [TEXT.format(number) for number in numbers]
        size = len(texts)
        columns: dict[str, Any] = {
            "record_id": sorted(f"r{number:023x}" for number in numbers),
            "source": ["records.csv"] * size,
            "source_row": list(numbers),
            "source_id": [None] * size,
            "text": texts,
            "text_sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "char_count": [len(text) for text in texts],
            "group": [None] * size,
            "duplicate_of": [None] * size,
            "gold": [None] * size,
            "metadata": [[]] * size,
        }
        table.append(pa.table(columns, schema=tables.records(project.label_schema.task)))


def a_prompt(codes: Sequence[LabelCode]) -> Prompt:
    """A prompt of ordinary length."""
    prefix = "What is meant?\nLabels: " + ", ".join(LABELS) + ".\n\nText: "
    return Prompt(PromptTemplate("overhead", prefix), tuple(codes), (), prefix, "\nLabel:")


def annotate(project: Project, folder: ProjectFolder, engine: Engine) -> int:
    """What the pre-annotation flow does, without Prefect; returns the number of suggestions."""
    prompt = a_prompt([LabelCode(label, f" {label}", index) for index, label in enumerate(LABELS)])
    store = register(project, folder, engine, prompt)
    known = store.known()
    for part, frame in stream_records(project, folder, ["text"]):
        for _ in score_missing(
            engine,
            prompt,
            store,
            frame.select("record_id", "text").iter_rows(),
            project=project,
            folder=folder,
            known=known,
            origin=part.path,
        ):
            pass
    scored = time.perf_counter(), time.process_time()
    plan = Plan(
        round=1, template="overhead", prompt_id=store.prompt_id, identity_id=store.identity_id, strength=1.0
    )
    annotate.scored = scored  # type: ignore[attr-defined]
    counts = write_suggestions(project, folder, plan, None)
    return int(counts["suggested"])


def in_process(root: Path, count: int, slots: int) -> dict[str, float]:
    """One size: records a second of wall and of CPU time, and the process's peak memory."""
    project = parse_project(PROJECT.encode(), "overhead")
    folder = ProjectFolder(root)
    warm_up = ProjectFolder(root / "warm-up")  # what is loaded on first use belongs to no record
    write_records(project, warm_up, 600)
    annotate(project, warm_up, InstantEngine(slots))
    write_records(project, folder, count)
    wall, cpu = time.perf_counter(), time.process_time()
    suggested = annotate(project, folder, InstantEngine(slots))
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    scored_wall, scored_cpu = annotate.scored  # type: ignore[attr-defined]
    assert suggested == count
    return {
        "records": count,
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
        "records_per_s": round(count / wall_s),
        "records_per_core_s": round(count / cpu_s),
        "scoring_records_per_core_s": round(count / (scored_cpu - cpu)),
        "suggesting_records_per_core_s": round(count / (cpu + cpu_s - scored_cpu)),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def over_http(requests: int) -> dict[str, float]:
    """Requests a second against a server in another process, with as many in flight as it has slots."""
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "scripted_engine.py"), ",".join(LABELS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    engine = LlamaServer(EngineConnection(server.stdout.readline().strip(), timeout_s=30), digest="none")
    prompt = a_prompt([LabelCode(label, f" {label}", engine.token_ids(f" {label}")[0]) for label in LABELS])
    records = [(f"r{number}", TEXT.format(number)) for number in range(requests // 2)]
    score_batch(engine, prompt, records[:50])
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = score_batch(engine, prompt, records)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    assert len(outcome.scored) == len(records)
    engine.close()
    server.stdin.close()
    server.wait()
    return {
        "requests": 2 * len(records),
        "in_flight": engine.slots,
        "requests_per_s": round(2 * len(records) / wall_s),
        "requests_per_core_s": round(2 * len(records) / cpu_s),
    }


def main() -> None:
    """Runs both measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_size:
        with tempfile.TemporaryDirectory(prefix="countersign-overhead-") as root:
            print(json.dumps(in_process(Path(root), given.one_size, given.slots)))
        return
    sizes = []
    for size in given.sizes.split(","):
        command = [
            sys.executable,
            "-m",
            "benchmarks.overhead",
            "--one-size",
            size,
            "--slots",
            str(given.slots),
        ]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        sizes.append(json.loads(done.stdout))
        print(sizes[-1], file=sys.stderr)
    http = over_http(given.requests)
    slowest = min(size["records_per_core_s"] for size in sizes)
    result = {
        "in_process": sizes,
        "over_http": http,
        "goals": {"records_per_core_s": GOAL_RECORDS, "requests_per_s": GOAL_REQUESTS},
        "records_per_core_s": slowest,
        "records_to_goal": round(slowest / GOAL_RECORDS, 3),
        "requests_to_goal": round(http["requests_per_s"] / GOAL_REQUESTS, 3),
        "memory_ratio": round(sizes[-1]["peak_memory_mib"] / sizes[0]["peak_memory_mib"], 3),
        "cpus": os.cpu_count(),
        "load_at_start": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
