"""How near the pipeline comes to what the engine can do: `python -m benchmarks.engine_share [--records 300]`.

Two measurements in turn on the same engine in this process, with the shipped demo messages, because a virtual machine's
speed can change by half within a minute:

- the pre_annotate flow with its task, shards and tables, under a real Prefect server;
- before each of its shards, and after the last, bare prefill: 256 fresh tokens behind the flow's own prefix, as many in
  flight as there are slots, nothing else done. The flow's clock stands still meanwhile.

Prints one JSON object: tokens a second of both (uncached tokens only), their ratio, and Prefect's share of the flow's
wall time (what is neither scoring nor writing suggestions).
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
from labeling import paths, score_store
from labeling.engines.protocol import Engine, Tokens
from labeling.engines.sharing import shared_engine
from labeling.ingest import ingest
from labeling.project_file import load_project
from labeling.prompts import Prompt, prompt_of
from labeling.score_store import ScoreStore
from labeling.setup import load_plan, measure_prompts, save_setup
from labeling.storage import Table, read_json
from schemas import tables

PREFILL_TOKENS = 256
BARE_PROMPTS = 8
SAMPLE = 50  # records that the prompt is chosen on
SHARD = 50


def bare_prefill(engine: Engine, prompt: Prompt) -> float:
    """Uncached prompt tokens a second of the engine alone."""
    dice = random.Random(1)
    words = engine.token_ids(
        " the patient asks for a visit next week because of pain and would like to know more"
    )
    prefix = engine.tokenize(prompt.prefix).ids
    prompts = [Tokens(prefix + tuple(dice.choices(words, k=PREFILL_TOKENS)), "") for _ in range(BARE_PROMPTS)]
    started = time.perf_counter()
    with ThreadPoolExecutor(engine.slots) as pool:
        read = pool.map(
            lambda turn: engine.prefill(prompts[turn], slot=turn % engine.slots), range(BARE_PROMPTS)
        )
        fresh = sum(sent - cached for sent, cached in read)
    return fresh / (time.perf_counter() - started)


def pipeline(root: Path, engine: Engine, prompt: Prompt) -> dict[str, Any]:
    """The flow on a prepared project: uncached tokens, scoring and wall seconds without the pauses, and the pace of
    bare prefill in each pause."""
    from flows.pre_annotate import pre_annotate

    project, folder = load_project(root)
    plan = load_plan(folder, 1)
    before = _tokens(project, folder, plan)
    bare: list[float] = []
    paused = 0.0
    as_it_is = score_store.score_batch

    def after_a_pause(*arguments: Any, **settings: Any) -> Any:
        nonlocal paused
        began = time.perf_counter()
        bare.append(bare_prefill(engine, prompt))
        paused += time.perf_counter() - began
        return as_it_is(*arguments, **settings)

    score_store.score_batch = after_a_pause
    try:
        started = time.perf_counter()
        answer: dict[str, Any] = pre_annotate(run={"project": str(root), "round_number": 1})
        wall = time.perf_counter() - started
    finally:
        score_store.score_batch = as_it_is
    bare.append(bare_prefill(engine, prompt))
    return {
        "records": answer["scored"],
        "tokens": _tokens(project, folder, plan) - before,
        "score_seconds": answer["score_seconds"] - paused,
        "suggest_seconds": answer["suggest_seconds"],
        "wall_seconds": wall - paused,
        "bare": bare,
    }


def _tokens(project: Any, folder: Any, plan: Any) -> int:
    store = ScoreStore(project, folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    frame = store.scored.read(["tokens_sent", "tokens_cached"])
    return int((frame["tokens_sent"] - frame["tokens_cached"]).sum())


def prepare(root: Path, records: int) -> None:
    """The demo project with its first records, set up on its gold column."""
    shutil.copytree(paths.configs() / "demo", root)
    source = root / "clinic_messages.csv"
    pl.read_csv(source).head(records + SAMPLE).write_csv(source)
    text = (root / "project.yaml").read_text("utf-8")
    (root / "project.yaml").write_text(
        text.replace("    id: message_id", "    id: message_id\n    gold: label")
        + f"limits:\n  shard_records: {SHARD}\n",
        "utf-8",
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
    parser.add_argument("--records", type=int, default=300)
    records = parser.parse_args().records
    os.environ.update(QUIET_ENVIRONMENT)
    server = start_prefect_server()
    os.environ.update(prefect_environment(server.url))
    try:
        with tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch:
            root = Path(scratch) / "clinic"
            prepare(root, records)
            project, folder = load_project(root)
            used = read_json(folder.prompts_used / f"{load_plan(folder, 1).prompt_id}.json")
            flow = pipeline(root, shared_engine(project), prompt_of(used))
    finally:
        server.stop()
    bare = flow["bare"]
    pace, limit = flow["tokens"] / flow["score_seconds"], sum(bare) / len(bare)
    work = flow["score_seconds"] + flow["suggest_seconds"]
    print(
        json.dumps(
            {
                "records": flow["records"],
                "bare_prefill_tokens_per_s": [round(rate, 1) for rate in bare],
                "pipeline_tokens_per_s": round(pace, 1),
                "engine_limit_share": round(pace / limit, 3),
                "records_per_s": round(flow["records"] / flow["score_seconds"], 2),
                "wall_s": round(flow["wall_seconds"], 1),
                "prefect_share_of_wall": round(1 - work / flow["wall_seconds"], 4),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
