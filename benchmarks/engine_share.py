"""How near the pipeline comes to what the engine can do: `python -m benchmarks.engine_share [--records 150]`.

Two measurements in turn, on the same engine in this process, with the shipped demo messages; two rounds of each, so
that a machine that grows slower or faster meanwhile does the same to both:

- bare prefill: prompts of 256 fresh tokens, one new token, as many in flight as there are slots, nothing else done;
- the pre_annotate flow with its tasks, shards and tables, under a real Prefect server.

Prints one JSON object: tokens a second of both (uncached tokens only), their ratio (all of the flow's against the mean
of the bare ones, and against the fastest of them), and Prefect's share of the flow's wall time (what is neither scoring
nor writing suggestions).
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl

from deployments.services import QUIET_ENVIRONMENT, prefect_environment, start_prefect_server
from labeling import paths
from labeling.engines.protocol import Engine, Tokens
from labeling.engines.sharing import shared_engine
from labeling.ingest import ingest
from labeling.project_file import load_project
from labeling.prompts import Prompt
from labeling.score_store import ScoreStore
from labeling.setup import bound_prompts, load_plan, measure_prompts, save_setup
from labeling.storage import Table
from schemas import tables

PREFILL_TOKENS = 256
BARE_PROMPTS = 16
ROUNDS = 2
SAMPLE = 15  # records of each round's own project that its prompt is chosen on


def bare_prefill(engine: Engine, prompt: Prompt) -> float:
    """Uncached prompt tokens a second of the engine alone."""
    dice = random.Random(1)
    words = engine.token_ids(
        " the patient asks for a visit next week because of pain and would like to know more"
    )
    prompts = [Tokens(tuple(dice.choices(words, k=PREFILL_TOKENS)), "") for _ in range(BARE_PROMPTS)]
    started = time.perf_counter()
    with ThreadPoolExecutor(engine.slots) as pool:
        replies = list(
            pool.map(
                lambda entry: engine.score(entry[1], prompt.codes, slot=entry[0] % engine.slots),
                enumerate(prompts),
            )
        )
    seconds = time.perf_counter() - started
    return sum(reply.tokens_sent - reply.tokens_cached for reply in replies) / seconds


def pipeline(root: Path) -> dict[str, float]:
    """The flow on a prepared project: uncached tokens, scoring seconds and wall seconds."""
    from flows.pre_annotate import pre_annotate

    project, folder = load_project(root)
    plan = load_plan(folder, 1)
    before = _tokens(project, folder, plan)
    started = time.perf_counter()
    answer: dict[str, Any] = pre_annotate(str(root), 1)
    wall = time.perf_counter() - started
    return {
        "records": answer["scored"],
        "tokens": _tokens(project, folder, plan) - before,
        "score_seconds": answer["score_seconds"],
        "suggest_seconds": answer["suggest_seconds"],
        "wall_seconds": wall,
    }


def _tokens(project: Any, folder: Any, plan: Any) -> int:
    store = ScoreStore(project, folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    frame = store.scored.read(["tokens_sent", "tokens_cached"])
    return int((frame["tokens_sent"] - frame["tokens_cached"]).sum())


def prepare(root: Path, first: int, records: int) -> None:
    """The demo project with some of its records, set up on its gold column."""
    shutil.copytree(paths.configs() / "demo", root)
    source = root / "clinic_messages.csv"
    pl.read_csv(source).slice(first, records + SAMPLE).write_csv(source)
    text = (root / "project.yaml").read_text("utf-8")
    (root / "project.yaml").write_text(
        text.replace("    id: message_id", "    id: message_id\n    gold: label"), "utf-8"
    )
    project, folder = load_project(root)
    ingest(project, folder)
    frame = (
        Table(folder.records, tables.records(project.label_schema.task))
        .read(["record_id", "gold"])
        .head(SAMPLE)
    )
    plan, figures = measure_prompts(project, folder, shared_engine(project), dict(frame.iter_rows()))
    save_setup(folder, plan, figures)


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=150, help="records a round")
    records = parser.parse_args().records
    os.environ.update(QUIET_ENVIRONMENT)
    server = start_prefect_server()
    os.environ.update(prefect_environment(server.url))
    try:
        with tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch:
            roots = [Path(scratch) / f"clinic-{number}" for number in range(ROUNDS)]
            for number, root in enumerate(roots):
                prepare(root, number * (records + SAMPLE), records)
            project, folder = load_project(roots[0])
            engine = shared_engine(project)
            prompt = bound_prompts(project, folder, engine)[0]
            bare, flows = [bare_prefill(engine, prompt)], []
            for root in roots:
                flows.append(pipeline(root))
                bare.append(bare_prefill(engine, prompt))
    finally:
        server.stop()
    total = {key: sum(flow[key] for flow in flows) for key in flows[0]}
    pace = total["tokens"] / total["score_seconds"]
    work = total["score_seconds"] + total["suggest_seconds"]
    print(
        json.dumps(
            {
                "records": total["records"],
                "bare_prefill_tokens_per_s": [round(rate, 1) for rate in bare],
                "pipeline_tokens_per_s": [round(flow["tokens"] / flow["score_seconds"], 1) for flow in flows],
                "engine_limit_share": round(pace / (sum(bare) / len(bare)), 3),
                "share_of_the_fastest_prefill": round(pace / max(bare), 3),
                "records_per_s": round(total["records"] / total["score_seconds"], 2),
                "wall_s": round(total["wall_seconds"], 1),
                "prefect_share_of_wall": round(1 - work / total["wall_seconds"], 4),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
